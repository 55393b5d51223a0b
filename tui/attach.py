"""Files named in a prompt with `@path`: read, checked and put behind the prompt as fenced text."""

from __future__ import annotations

import re
from pathlib import Path

from rvllm_local.errors import ParameterError

FILE_LIMIT = 256 * 2**10  # bytes of one file
TOTAL_LIMIT = 1 * 2**20
_MENTION = re.compile(r'(?<!\S)@(?:"([^"\n]+)"|(\S+))')


def mention(path: str) -> str:
    """How a path is named in a prompt."""
    return f'@"{path}"' if re.search(r"\s", path) else f"@{path}"


def expand(text: str, folder: Path) -> str:
    """The prompt with the files that it names. An @word that is no path of a file stays as it is.

    Raises `ParameterError` for a file that is too large, is no text or cannot be read.
    """
    parts, total, seen = [text], 0, set()
    for found in _MENTION.finditer(text):
        name = found[1] or found[2].rstrip(".,;:!?)")
        path = folder / Path(name).expanduser()
        try:
            is_file = path.is_file()
        except (OSError, ValueError):
            is_file = False
        if not is_file or path in seen:
            if found[1] or (not is_file and "/" in name):
                raise ParameterError("attachment", f"@{name}: there is no such file")
            continue
        seen.add(path)
        content = _read(path, name)
        total += len(content)
        if total > TOTAL_LIMIT:
            raise ParameterError(
                "attachment",
                f"the attached files exceed {TOTAL_LIMIT >> 10} KiB together",
            )
        fence = "`" * max(
            3, 1 + max((len(run) for run in re.findall(r"`+", content)), default=0)
        )
        parts.append(
            f"{path.name}:\n{fence}{path.suffix[1:]}\n{content.rstrip()}\n{fence}"
        )
    return "\n\n".join(parts)


def _read(path: Path, name: str) -> str:
    try:
        with path.open(
            "rb"
        ) as file:  # one byte more than allowed: a size that is told can be a lie
            content = file.read(FILE_LIMIT + 1)
    except OSError as error:
        raise ParameterError(
            "attachment", f"@{name} cannot be read: {error.strerror}"
        ) from error
    if len(content) > FILE_LIMIT:
        size = path.stat().st_size
        raise ParameterError(
            "attachment",
            f"@{name} has {size:,} bytes; at most {FILE_LIMIT:,} can be attached",
        )
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ParameterError(
            "attachment", f"@{name} is no UTF-8 text; convert it first"
        ) from error
    if "\0" in text:
        raise ParameterError("attachment", f"@{name} is a binary file")
    return text
