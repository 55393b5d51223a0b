"""A web page as text: what a person would read of it.

Fetched only because its address was written into a prompt. Bounded in time and size.
"""

from __future__ import annotations

import re
import time
from html.parser import HTMLParser

import httpx

from rvllm_local.errors import ParameterError
from rvllm_local.tui.sanitise import clean_line

TIME_S = 20.0  # of the whole page
SIZE_LIMIT = 4 * 2**20  # bytes
_TEXT_TYPES = ("text/", "application/json", "application/xml", "application/xhtml")
_SILENT = frozenset(("script", "style", "noscript", "template", "svg", "head"))
_BESIDE = frozenset(("nav", "footer", "aside", "form"))  # not the page itself
_BLOCKS = frozenset(
    ("p", "div", "br", "li", "tr", "section", "article", "pre", "blockquote")
)
_HEADINGS = {"h1": "# ", "h2": "## ", "h3": "### ", "h4": "#### "}


def fetch_page(
    address: str,
    limit: int,
    transport: httpx.BaseTransport | None = None,
) -> str:
    """At most `limit` characters of the page. Raises `ParameterError`."""
    shown = clean_line(address, 120)
    try:
        content, kind, encoding = _download(address, transport)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        reason = f"@{shown} cannot be fetched: {type(error).__name__}"
        raise ParameterError("attachment", reason) from error
    if not kind.startswith(_TEXT_TYPES):
        reason = (
            f"@{shown} is {clean_line(kind, 40) or 'of no type'}, not a page of text"
        )
        raise ParameterError("attachment", reason)
    text = content.decode(encoding, "replace")
    if "html" in kind:
        text = page_text(text)
    if not text.strip():
        raise ParameterError("attachment", f"@{shown} shows no text without scripts")
    if len(text) > limit:
        text = f"{text[:limit]}\n[cut: the page goes on]"
    return text


def _download(
    address: str, transport: httpx.BaseTransport | None
) -> tuple[bytes, str, str]:
    """The page's bytes, its type and its encoding."""
    ends_at = time.monotonic() + TIME_S
    client = httpx.Client(
        timeout=TIME_S, follow_redirects=True, max_redirects=5, transport=transport
    )
    with client, client.stream("GET", address) as answer:
        answer.raise_for_status()
        content = b""
        for chunk in answer.iter_bytes():
            content += chunk
            if len(content) > SIZE_LIMIT or time.monotonic() > ends_at:
                break
        kind = answer.headers.get("content-type", "").lower()
        encoding = answer.charset_encoding or "utf-8"
    try:
        "".encode(encoding)
    except LookupError:
        encoding = "utf-8"
    return content[:SIZE_LIMIT], kind, encoding


def page_text(html: str) -> str:
    """The text of a page, with its headings and lists as Markdown."""
    reader = _PageReader()
    reader.feed(html)
    reader.close()
    text = "".join(reader.pieces)
    text = re.sub(r"[ \t]+", " ", text)
    text = re.sub(r" ?\n ?", "\n", text)
    return re.sub(r"\n{3,}", "\n\n", text).strip()


class _PageReader(HTMLParser):
    """Gathers what is to be read."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.pieces: list[str] = []
        self._hidden: list[str] = []  # the open tags whose text is left out

    def handle_starttag(
        self,
        tag: str,
        attrs: object,
    ) -> None:
        if tag in _SILENT or tag in _BESIDE:
            self._hidden.append(tag)
        elif tag in _HEADINGS:
            self.pieces.append(f"\n\n{_HEADINGS[tag]}")
        elif tag == "li":
            self.pieces.append("\n- ")
        elif tag in ("td", "th"):
            self.pieces.append(" | ")
        elif tag in _BLOCKS:
            self.pieces.append("\n")

    def handle_endtag(self, tag: str) -> None:
        if tag in self._hidden:
            while self._hidden.pop() != tag:
                pass
        elif tag in _HEADINGS or tag == "p":
            self.pieces.append("\n\n")

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self.pieces.append(re.sub(r"\s+", " ", data))
