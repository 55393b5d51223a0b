"""The text of a PDF, read by a process of its own.

python -m rvllm_local.tui.pdf_text FILE LIMIT

A file from elsewhere may take for ever or all memory: the process has a limit of both,
and prints at most LIMIT characters. Exit status 3 means that the file holds no text.
"""

from __future__ import annotations

import contextlib
import resource
import subprocess
import sys
from pathlib import Path

from rvllm_local.errors import ParameterError

TIME_S = 20
MEMORY = 1 * 2**30  # bytes
SIZE_LIMIT = 50 * 2**20  # bytes of the file
PAGES_LIMIT = 400
_NO_TEXT = 3


def read_pdf(
    path: Path,
    name: str,
    limit: int,
) -> str:
    """At most `limit` characters of a PDF. Raises `ParameterError` with the reason."""
    size = path.stat().st_size
    if size > SIZE_LIMIT:
        reason = f"@{name} has {size:,} bytes; at most {SIZE_LIMIT:,} of a PDF are read"
        raise ParameterError("attachment", reason)
    program = [sys.executable, "-m", "rvllm_local.tui.pdf_text"]
    try:
        finished = subprocess.run(
            [*program, str(path), str(limit)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=TIME_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        reason = f"@{name} could not be read as a PDF within {TIME_S} s"
        raise ParameterError("attachment", reason) from error
    if finished.returncode == _NO_TEXT:
        reason = f"@{name} holds pictures of text alone; recognise its text first"
        raise ParameterError("attachment", reason)
    if finished.returncode:
        reason = f"@{name} cannot be read as a PDF; export it as text"
        raise ParameterError("attachment", reason)
    return finished.stdout.decode("utf-8", "replace")


def _pages(path: Path, limit: int) -> str:
    from pypdf import PdfReader

    parts = []
    length = 0
    reader = PdfReader(path)
    for number, page in enumerate(reader.pages[:PAGES_LIMIT], 1):
        text = page.extract_text().strip()
        if not text:
            continue
        parts.append(f"[page {number}]\n{text}")
        length += len(parts[-1])
        if length > limit:
            parts.append(f"[cut on page {number} of {len(reader.pages)}]")
            break
    return "\n\n".join(parts)


def main(arguments: list[str]) -> int:
    """Print the text of the file."""
    # Where the system knows no such limit, the limit of time remains.
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    limit = int(arguments[1])
    text = _pages(Path(arguments[0]), limit)
    if not text:
        return _NO_TEXT
    if len(text) > limit:
        head, _, tail = text.rpartition("\n\n")
        text = f"{head[:limit]}\n\n{tail[-200:]}"
    sys.stdout.buffer.write(text.encode("utf-8", "replace"))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
