"""What a prompt names with `@`: files, folders, PDFs and web pages, put behind it as text.

A file is read as text; of a folder, the text files below it; a PDF and a page of the
web are turned into text. All is bounded. Knows no widget.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from rvllm_local.errors import ParameterError
from rvllm_local.tui.file_search import find_files

FILE_LIMIT = 256 * 2**10  # bytes of one file, characters of one document
TOTAL_LIMIT = 1 * 2**20
FILES_LIMIT = 100  # of one folder
IMAGES = (".png", ".jpg", ".jpeg", ".gif", ".webp", ".heic", ".bmp", ".tiff")
_MENTION = re.compile(r'(?<!\S)@(?:"([^"\n]+)"|(\S+))')
_WEB = ("http://", "https://")


@dataclass(frozen=True, slots=True)
class Attachment:
    """What a prompt names: a page's address, else a path."""

    name: str
    path: Path | None


def mention(path: str) -> str:
    """How a path is named in a prompt."""
    return f'@"{path}"' if re.search(r"\s", path) else f"@{path}"


def expand(text: str, folder: Path) -> str:
    """The prompt with what it names. Reads files and pages; may take seconds.

    An @word that looks like no file stays as it is. Raises `ParameterError` for what is
    not there, is too large, is no text or cannot be read.
    """
    parts = [text]
    total = 0
    for attachment in _mentions(text, folder):
        for title, ending, content in _read(attachment):
            total += len(content)
            if total > TOTAL_LIMIT:
                limit = TOTAL_LIMIT >> 10
                reason = f"the attached files exceed {limit} KiB together"
                raise ParameterError("attachment", reason)
            fence = _fence(content)
            head = f"{title}:\n{fence}{ending}"
            parts.append(f"{head}\n{content.rstrip()}\n{fence}")
    return "\n\n".join(parts)


def mentioned_files(text: str, folder: Path) -> list[str]:
    """The names and sizes of what a prompt names."""
    sizes = []
    for attachment in _mentions(text, folder):
        path = attachment.path
        if path is None or path.is_dir():
            sizes.append(attachment.name)
        else:
            sizes.append(f"{attachment.name} {path.stat().st_size / 1000:.1f} kB")
    return sizes


def needs_reading(text: str) -> bool:
    """Whether the prompt may name something, so that preparing it takes its time."""
    return _MENTION.search(text) is not None


def _mentions(text: str, folder: Path) -> list[Attachment]:
    """What a prompt names, each once."""
    attachments: dict[Path | str, Attachment] = {}
    for match in _MENTION.finditer(text):
        name = match[1] or match[2].rstrip(".,;:!?)")
        if name.lower().startswith(_WEB):
            attachments.setdefault(name, Attachment(name, None))
            continue
        path = folder / Path(name).expanduser()
        if _is_there(path, name):
            attachments.setdefault(path, Attachment(name, path))
        elif match[1] or _looks_like_path(name):
            raise ParameterError("attachment", f"@{name}: there is no such file")
    return list(attachments.values())


def _is_there(path: Path, name: str) -> bool:
    """A file, or a folder that is named as one, with a slash."""
    try:
        return path.is_file() or (path.is_dir() and "/" in name)
    except (OSError, ValueError):
        return False


def _looks_like_path(name: str) -> bool:
    """Whether an @word means a file: it has a folder or an ending such as `.py`."""
    return "/" in name or re.fullmatch(r"[^@]*\w\.\w{1,8}", name) is not None


def _fence(content: str) -> str:
    """A fence longer than any run of backticks in the text."""
    longest = max(map(len, re.findall(r"`+", content)), default=0)
    return "`" * max(3, longest + 1)


def _read(attachment: Attachment) -> list[tuple[str, str, str]]:
    """The title, language and text of each document that it stands for."""
    name, path = attachment.name, attachment.path
    if path is None:
        from rvllm_local.tui.web_text import fetch_page

        return [(name, "", fetch_page(name, FILE_LIMIT))]
    if path.is_dir():
        return _read_folder(path, name)
    if path.suffix.lower() == ".pdf":
        from rvllm_local.tui.pdf_text import read_pdf

        return [(path.name, "", read_pdf(path, name, FILE_LIMIT))]
    return [(path.name, path.suffix[1:], _read_text(path, name))]


def _read_folder(path: Path, name: str) -> list[tuple[str, str, str]]:
    """The text files below a folder; what is no text is left out."""
    documents = []
    total = 0
    for below in find_files(path):
        file = path / below
        if below.endswith("/") or file.suffix.lower() in IMAGES:
            continue
        try:
            content = _read_text(file, below)
        except ParameterError:
            continue
        total += len(content)
        documents.append((f"{path.name}/{below}", file.suffix[1:], content))
        if len(documents) > FILES_LIMIT or total > TOTAL_LIMIT:
            most = f"{FILES_LIMIT} files or {TOTAL_LIMIT >> 10} KiB"
            reason = f"@{name} holds more than {most} of text; name a part of it"
            raise ParameterError("attachment", reason)
    if not documents:
        raise ParameterError("attachment", f"@{name} holds no text files")
    return documents


def _read_text(path: Path, name: str) -> str:
    if path.suffix.lower() in IMAGES:
        raise ParameterError("attachment", f"@{name} is an image; {_who_sees()}")
    try:
        with path.open("rb") as file:
            # One byte more than allowed: a size that is told can be a lie.
            content = file.read(FILE_LIMIT + 1)
    except OSError as error:
        reason = f"@{name} cannot be read: {error.strerror}"
        raise ParameterError("attachment", reason) from error
    if len(content) > FILE_LIMIT:
        size = path.stat().st_size
        reason = f"@{name} has {size:,} bytes; at most {FILE_LIMIT:,} can be attached"
        raise ParameterError("attachment", reason)
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        reason = f"@{name} is no UTF-8 text; convert it first"
        raise ParameterError("attachment", reason) from error
    if "\0" in text:
        raise ParameterError("attachment", f"@{name} is a binary file")
    return text


def _who_sees() -> str:
    """That images are not sent, and the model here that was made to see them."""
    from rvllm_local.tui.offers import image_model  # reads the catalogue

    model = image_model()
    reason = "models get text alone so far"
    if model is None:
        return f"{reason}, and none that sees images fits this machine"
    size = (model.size or 0) / 1e9
    return f"{reason}. {model.id} ({size:.1f} GB, fits here) is one made to see them"
