"""The snippets in the documentation run as they stand, but for the address of the server."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import httpx
import pytest

ROOT = Path(__file__).parents[2]
ADDRESS = "http://127.0.0.1:8473"


def snippets(language: str) -> list[tuple[str, str]]:
    found = []
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        for number, code in enumerate(
            re.findall(rf"^```{language}\n(.*?)^```", path.read_text(), re.S | re.M)
        ):
            found.append((f"{path.name}-{number}", code))
    return found


def at_server(code: str, request: pytest.FixtureRequest) -> str:
    """The snippet at the tests' own server, which is started only for those that need one."""
    return (
        code.replace(ADDRESS, request.getfixturevalue("address"))
        if ADDRESS in code
        else code
    )


@pytest.mark.parametrize(
    ("name", "code"), snippets("python"), ids=[name for name, _ in snippets("python")]
)
def test_snippet_runs(
    name: str,
    code: str,
    smollm2: Path,
    request: pytest.FixtureRequest,
    capsys: pytest.CaptureFixture[str],
) -> None:
    exec(compile(at_server(code, request), name, "exec"), {"__name__": "__main__"})
    assert capsys.readouterr().out.strip()


@pytest.mark.parametrize(
    ("name", "code"), snippets("sh"), ids=[name for name, _ in snippets("sh")]
)
def test_shell_snippet_runs(
    name: str, code: str, smollm2: Path, request: pytest.FixtureRequest
) -> None:
    """An address that a snippet exports is that of an API with models."""
    script = (
        at_server(code, request)
        + '\necho "exported: ${ANTHROPIC_BASE_URL:-}${OPENAI_BASE_URL:-}'
        '${OPENAI_API_BASE:-}${CODEX_OSS_BASE_URL:-}"'
    )
    done = subprocess.run(
        ["bash", "-euc", script],
        capture_output=True,
        text=True,
        check=True,
        timeout=240,
    )
    body, _, exported = done.stdout.rpartition("exported: ")
    if exported.strip():
        base = exported.strip().removesuffix("/v1")
        assert httpx.get(f"{base}/v1/models", timeout=240).json()["data"]
    else:
        assert json.loads(body)["choices"]


@pytest.mark.parametrize(
    ("name", "code"), snippets("json"), ids=[name for name, _ in snippets("json")]
)
def test_configuration_snippet_names_an_api(
    name: str, code: str, request: pytest.FixtureRequest
) -> None:
    """That the agents themselves read it is shown by tests/api/test_agents.py."""
    text = at_server(code, request)
    json.loads(text)
    bases = re.findall(r'"baseU(?:RL|rl)": "([^"]+)"', text)
    assert len(bases) == 1
    assert httpx.get(f"{bases[0]}/models/default", timeout=240).status_code == 200
