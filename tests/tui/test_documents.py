"""What `@` names: files by a few letters, folders, PDFs and pages of the web, as text."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from rvllm_local.errors import ParameterError
from rvllm_local.models.catalogue import Catalogue
from rvllm_local.tui.attach import FILES_LIMIT, expand, mentioned_files, needs_reading
from rvllm_local.tui.complete import completions
from rvllm_local.tui.file_search import best_matches, find_files
from rvllm_local.tui.pdf_text import read_pdf
from rvllm_local.tui.web_text import fetch_page, page_text


def make_pdf(path: Path, words: str) -> None:
    """The smallest PDF with one page of text."""
    stream = f"BT /F1 24 Tf 72 700 Td ({words}) Tj ET".encode()
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents 4 0 R"
        b" /Resources << /Font << /F1 5 0 R >> >> >>",
        b"<< /Length %d >>\nstream\n%s\nendstream" % (len(stream), stream),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    content, offsets = b"%PDF-1.4\n", []
    for number, body in enumerate(objects, 1):
        offsets.append(len(content))
        content += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    start = len(content)
    content += b"xref\n0 6\n0000000000 65535 f \n"
    content += b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    content += b"trailer << /Size 6 /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % start
    path.write_bytes(content)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    for name in (
        "src/deep/parser.py",
        "src/main.py",
        "src/main.log",
        "docs/guide.md",
        "build/out.txt",
        "node_modules/x/main.py",
        ".git/config",
        ".hidden",
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"text of {name}\n")
    (tmp_path / ".gitignore").write_text("# rules\nbuild/\n*.log\n")
    return tmp_path


def test_ignored_files_are_left_out(project: Path) -> None:
    assert find_files(project) == [
        "docs/",
        "src/",
        "docs/guide.md",
        "src/deep/",
        "src/main.py",
        "src/deep/parser.py",
    ]
    (project / "src" / ".gitignore").write_text("!main.log\n/deep\n")
    assert "src/main.log" in find_files(project)
    assert "src/deep/" not in find_files(project)


def test_a_few_letters_find_a_file(project: Path) -> None:
    paths = find_files(project)
    assert best_matches(paths, "parser", 6) == ["src/deep/parser.py"]
    assert best_matches(paths, "sdprs", 6)[0] == "src/deep/parser.py"
    assert best_matches(paths, "main", 1) == ["src/main.py"]
    assert best_matches(paths, "zzz", 6) == []
    offers = completions("explain @pars", project)
    assert [offer.text for offer in offers] == ["explain @src/deep/parser.py "]


def test_a_folder_is_attached_with_its_text_files(project: Path) -> None:
    (project / "src" / "picture.png").write_bytes(b"\x89PNG\0")
    text = expand("sum up @src/", project)
    assert "src/main.py:\n```py\ntext of src/main.py\n```" in text
    assert "src/deep/parser.py" in text
    assert "main.log" not in text and "picture" not in text
    assert mentioned_files("@src/", project) == ["src/"]


def test_a_folder_that_is_too_large_or_empty_is_an_error(tmp_path: Path) -> None:
    for number in range(FILES_LIMIT + 1):
        (tmp_path / f"{number}.txt").write_text("x")
    with pytest.raises(ParameterError, match="name a part of it"):
        expand("@./", tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ParameterError, match="holds no text files"):
        expand("@empty/", tmp_path)


def test_a_pdf_is_read_as_text(tmp_path: Path) -> None:
    make_pdf(tmp_path / "tea.pdf", "Sencha at 70 degrees")
    text = expand("what about @tea.pdf", tmp_path)
    assert "tea.pdf:\n```\n[page 1]\nSencha at 70 degrees\n```" in text


def test_a_pdf_without_text_or_sense_is_an_error(tmp_path: Path) -> None:
    make_pdf(tmp_path / "scan.pdf", "")
    with pytest.raises(ParameterError, match="pictures of text alone"):
        read_pdf(tmp_path / "scan.pdf", "scan.pdf", 1000)
    (tmp_path / "bad.pdf").write_bytes(b"%PDF-1.4\nnothing")
    with pytest.raises(ParameterError, match="cannot be read as a PDF"):
        read_pdf(tmp_path / "bad.pdf", "bad.pdf", 1000)


PAGE = """<html><head><title>x</title><script>bad()</script></head><body>
<nav>menu</nav><h1>Teas &amp; more</h1><p>Green   tea
is <b>fine</b>.</p><ul><li>Sencha<li>Matcha</ul><footer>imprint</footer></body>"""


def answering(status: int = 200, kind: str = "text/html", body: str = PAGE):
    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(status, headers={"content-type": kind}, text=body)

    return httpx.MockTransport(answer)


def test_a_page_is_read_as_text() -> None:
    text = fetch_page("https://tea.example/", 1000, answering())
    assert text == "# Teas & more\n\nGreen tea is fine.\n\n- Sencha\n- Matcha"
    assert fetch_page("https://x/", 9, answering()).endswith("[cut: the page goes on]")
    plain = answering(kind="text/plain", body="a <b> c")
    assert fetch_page("https://x/a.txt", 100, plain) == "a <b> c"
    assert page_text("</nav>a</nav><nav><nav>b") == "a"


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (answering(404), "cannot be fetched"),
        (answering(kind="image/png"), "not a page of text"),
        (answering(body="<script>x</script>"), "no text without scripts"),
    ],
)
def test_a_page_that_cannot_be_read_is_an_error(answer, words: str) -> None:
    with pytest.raises(ParameterError, match=words):
        fetch_page("https://tea.example/", 1000, answer)


def test_pages_are_named_by_their_address(tmp_path: Path) -> None:
    assert mentioned_files("see @https://x.example/a", tmp_path) == [
        "https://x.example/a"
    ]
    assert needs_reading("see @a") and not needs_reading("mail me@b.c")


def test_a_pdf_is_sent_with_a_prompt(play, tmp_path: Path, monkeypatch) -> None:
    make_pdf(tmp_path / "tea.pdf", "Sencha")
    monkeypatch.chdir(tmp_path)

    async def scenario(chat) -> None:
        await chat.say("sum up @tea.pdf ")
        content = chat.fake.requests[-1]["messages"][-1]["content"]
        assert "[page 1]\nSencha" in content
        assert "(tea.pdf" in chat.screen()

    play(scenario)


def test_a_few_letters_are_completed_while_typing(play, project, monkeypatch) -> None:
    monkeypatch.chdir(project)

    async def scenario(chat) -> None:
        await chat.type("explain @pars")
        await chat.until(lambda: "@src/deep/parser.py" in chat.screen())
        await chat.press("tab")
        await chat.until(
            lambda: chat.app.composer.text == "explain @src/deep/parser.py "
        )

    play(scenario)


def test_an_image_is_refused_with_the_model_that_would_see_it(project: Path) -> None:
    (project / "src" / "picture.png").write_bytes(b"\x89PNG\0")
    with pytest.raises(ParameterError) as refusal:
        expand("what is @src/picture.png", project)
    reason = str(refusal.value)
    assert "@src/picture.png is an image; models get text alone so far" in reason
    entries = Catalogue.load().entries
    named = [name for name, entry in entries.items() if f"{name} (" in reason]
    assert len(named) == 1 and entries[named[0]].images


def test_where_nothing_fits_no_model_is_named(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (project / "src" / "picture.png").write_bytes(b"\x89PNG\0")
    monkeypatch.setattr("rvllm_local.tui.offers.device_memory", lambda: 2**30)
    with pytest.raises(ParameterError, match="none that sees images fits"):
        expand("what is @src/picture.png", project)
