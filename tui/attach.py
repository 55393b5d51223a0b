"""Files named in a prompt with `@path`: read, checked and put behind the prompt as fenced text."""

from __future__ import annotations

import re
from pathlib import Path

from rvllm_local.errors import ParameterError

FILE_LIMIT = 256 * 2**10  # bytes of one file
TOTAL_LIMIT = 1 * 2**20
IMAGES = (".png", ".jpg", ".jpeg", ".gif", ".webp", ".heic", ".bmp", ".tiff")
_MENTION = re.compile(r'(?<!\S)@(?:"([^"\n]+)"|(\S+))')


def mention(path: str) -> str:
    """How a path is named in a prompt."""
    return f'@"{path}"' if re.search(r"\s", path) else f"@{path}"


def expand(text: str, folder: Path) -> str:
    """The prompt with the files that it names.

    An @word that looks like no file stays as it is. Raises `ParameterError` for a file
    that is not there, is too large, is no text or cannot be read.
    """
    parts, total = [text], 0
    for name, path in _mentions(text, folder):
        content = _read(path, name)
        total += len(content)
        if total > TOTAL_LIMIT:
            raise ParameterError(
                "attachment",
                f"the attached files exceed {TOTAL_LIMIT >> 10} KiB together",
            )
        fence = _fence(content)
        title = f"{path.name}:\n{fence}{path.suffix[1:]}"
        parts.append(f"{title}\n{content.rstrip()}\n{fence}")
    return "\n\n".join(parts)


def mentioned_files(text: str, folder: Path) -> list[str]:
    """The names and sizes of the files that a prompt names."""
    sizes = []
    for name, path in _mentions(text, folder):
        sizes.append(f"{name} {path.stat().st_size / 1000:.1f} kB")
    return sizes


def _mentions(text: str, folder: Path) -> list[tuple[str, Path]]:
    """The files that a prompt names, each once."""
    files: dict[Path, str] = {}
    for match in _MENTION.finditer(text):
        name = match[1] or match[2].rstrip(".,;:!?)")
        path = folder / Path(name).expanduser()
        if _is_file(path):
            files.setdefault(path, name)
        elif match[1] or _looks_like_path(name):
            raise ParameterError("attachment", _no_file(name, path))
    return [(name, path) for path, name in files.items()]


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def _looks_like_path(name: str) -> bool:
    """Whether an @word means a file: it has a folder or an ending such as `.py`."""
    return "/" in name or re.fullmatch(r"[^@]*\w\.\w{1,8}", name) is not None


def _no_file(name: str, path: Path) -> str:
    try:
        if path.is_dir():
            return f"@{name} is a folder; name its files"
    except (OSError, ValueError):
        pass
    return f"@{name}: there is no such file"


def _fence(content: str) -> str:
    """A fence longer than any run of backticks in the text."""
    longest = max(map(len, re.findall(r"`+", content)), default=0)
    return "`" * max(3, longest + 1)


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
    if path.suffix.lower() in IMAGES:
        raise ParameterError(
            "attachment", f"@{name} is an image; the models here read text alone"
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
