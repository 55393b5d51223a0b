"""`rvllm serve` as people start it: a process of its own, on a free loopback port."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from tests.support.tiny import save_tiny

_READY_S = 60.0

# A template in the manner of Qwen 3: tools, calls and thinking.
THINKING_TEMPLATE = """\
{%- if tools %}{{ '<|im_start|>system\\nTools:\\n' }}{% for tool in tools %}{{ tool | tojson }}{{ '\\n' }}{% endfor -%}
{{ 'Call with <tool_call>{"name": ..., "arguments": ...}</tool_call><|im_end|>\\n' }}{% endif -%}
{%- for message in messages %}{{ '<|im_start|>' + message.role + '\\n' + message.content }}
{%- for call in message.tool_calls or [] %}
{{- '<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' + (call.function.arguments | tojson) }}
{{- '}\\n</tool_call>' }}{% endfor %}{{ '<|im_end|>\\n' }}{% endfor -%}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif -%}
{%- if enable_thinking is defined and not enable_thinking %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif -%}
"""


def save_thinking(folder: Path) -> Path:
    """A tiny random model whose template knows tools and thoughts. Returns the folder."""
    save_tiny("llama", folder)
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(
        json.dumps({**settings, "chat_template": THINKING_TEMPLATE}), encoding="utf-8"
    )
    return folder


@contextlib.contextmanager
def rvllm_serve(
    models: Sequence[Path | str], *flags: str, environ: Mapping[str, str] | None = None
) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """The base address (without /v1) of a server that listens, and its process; it is ended with the block."""
    command = [
        sys.executable,
        "-m",
        "rvllm_local.cli",
        "serve",
        *map(str, models),
        "--port",
        "0",
        "--keep-responses",  # on disk only where a test asks for it
        "0",
        *flags,
    ]
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **(environ or {})},
    )
    try:
        assert process.stderr is not None
        said = []
        for line in process.stderr:
            said.append(line)
            if found := re.search(r"serving on (\S+)/v1", line):
                break
        else:
            raise AssertionError("".join(said))
        yield found[1], process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(60)
        if process.poll() is None:
            process.kill()
        process.wait()
        assert process.stderr is not None
        process.stderr.close()
