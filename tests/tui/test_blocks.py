"""Markdown laid out for a width: nothing stands left of its indent, nothing is cut."""

from __future__ import annotations

import re

import pytest
from markdown_it.token import Token
from textual.color import Color

from rvllm_local.tui import inline
from rvllm_local.tui.markdown import parse_inline
from rvllm_local.tui.math_text import math_text
from rvllm_local.tui.render import render_markdown
from rvllm_local.tui.themes import make_themes

LONG = "word " * 40
SAMPLE = f"""# Title

{LONG}

- first {LONG}
  - deep {LONG}
    1. deeper {LONG}

      its second paragraph {LONG}

> quoted {LONG}
>
> - listed {LONG}
>
> > twice {LONG}

- item with code

  ```python
  value = "{"x" * 150}"
  ```
"""


def indent_of(line: str) -> int:
    return len(line) - len(line.lstrip(" "))


@pytest.mark.parametrize("width", [24, 40, 80, 120])
def test_no_line_starts_left_of_its_indent(width: int) -> None:
    lines = render_markdown(SAMPLE, width).plain.split("\n")
    paragraph = next(line for line in lines if line.startswith("word"))
    rest = lines[lines.index(paragraph) + 1 :]
    for line in rest:
        assert not re.match(r"word|x", line), f"{line!r} has lost its indent"
        assert len(line) <= width
    for marker, indent in (("• first", 2), ("• deep", 4), ("1. deeper", 7)):
        start = next(at for at, line in enumerate(lines) if marker in line)
        assert indent_of(lines[start + 1]) == indent, lines[start + 1]


@pytest.mark.parametrize("width", [40, 80])
def test_each_line_of_a_quote_has_its_bar(width: int) -> None:
    lines = render_markdown(f"> {LONG}\n>\n> {LONG}\n", width).plain.split("\n")
    assert len(lines) > 4
    assert all(line.startswith("▎") for line in lines)


TABLE = """
| Tea | °C | Notes |
|:----|---:|:-----:|
| Sencha | 70 | grassy, umami, and a long note about the second steeping |
| Hojicha | 95 | mild |
"""


def test_a_table_wraps_its_cells_and_keeps_its_alignment() -> None:
    lines = render_markdown(TABLE, 44).plain.split("\n")
    assert all(len(line) <= 44 for line in lines)
    assert all(line.count("│") == 2 for line in lines if "─" not in line)
    row = next(line for line in lines if line.startswith("Hojicha"))
    assert row.split("│")[1] == " 95 "
    assert row.split("│")[2].startswith("  ")  # centred


def test_a_narrow_table_stacks_its_rows() -> None:
    shown = render_markdown(TABLE, 20).plain
    assert "Tea: Sencha\n°C: 70" in shown
    assert "│" not in shown


def test_pipes_in_code_and_formulas_end_no_cell() -> None:
    table = "| a | b |\n|---|---|\n| `p || q` | `r \\| s` |\n| \\(|x|\\) | ``t|u`` |\n"
    lines = render_markdown(table, 40).plain.split("\n")
    assert [line.split(" │ ")[0].strip() for line in lines[2:]] == ["p || q", "|x|"]
    assert [line.split(" │ ")[1].strip() for line in lines[2:]] == ["r | s", "t|u"]
    fenced = f"```\n{table}```\nand `a|b`\n"
    shown = render_markdown(fenced, 60).plain
    assert "| `p || q` | `r \\| s` |" in shown and shown.endswith("and a|b")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("1. - a\n2. - b", ["1. • a", "2. • b"]),
        ("- > q\n- p", ["• ▎ q", "• p"]),
        ("- a\n-\n- c", ["• a", "•", "• c"]),
        ("1. > - x\n   >   y", ["1. ▎ • x", "   ▎   y"]),
        ("> a\n>\n> > b", ["▎ a", "▎", "▎ ▎ b"]),
        ("> - c\n>\n>   > d", ["▎ • c", "▎", "▎   ▎ d"]),
        ("- ```\n  x\n  ```", ["• ▏ x"]),
    ],
)
def test_markers_stand_beside_each_other(text: str, shown: list[str]) -> None:
    lines = render_markdown(text, 40).plain.split("\n")
    assert [line.rstrip() for line in lines] == shown


def test_tasks_footnotes_and_breaks() -> None:
    shown = render_markdown("- [ ] open\n- [x] done\n\nA note[^1].\n\n[^1]: here").plain
    assert shown == "☐ open\n☑ done\n\nA note¹.\n\n¹ here"
    assert render_markdown("a<br>b").plain == "a\nb"


def test_a_diff_has_its_colours() -> None:
    content = render_markdown("```diff\n+ new\n- old\n```")
    styles = {str(span.style) for span in content.spans}
    assert {"$success", "$error"} <= styles


def test_code_stands_on_its_own_ground() -> None:
    content = render_markdown("```\nplain\n```", 30)
    assert "on $surface" in {str(span.style) for span in content.spans}
    assert len(content.plain) == 30


@pytest.mark.parametrize(
    ("tex", "shown"),
    [
        ("a^2 + b^2 = c^2", "a² + b² = c²"),
        (r"\frac{a}{b+1}", "a/(b+1)"),
        (r"\sqrt{2}", "√2"),
        (r"x_{10} \leq \alpha", "x₁₀ ≤ α"),
        (r"\sum_{i=1}^{n} i", "∑ᵢ₌₁ⁿ i"),
        (r"\mathbb{R}^n", "ℝⁿ"),
        (r"\unknown{x}", r"\unknown{x}"),
    ],
)
def test_formulas_become_unicode_where_they_can(tex: str, shown: str) -> None:
    assert math_text(tex) == shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (r"so \(a^2\) it is", "so a² it is"),
        (r"\[x_1 * y * z\]", "x₁ * y * z"),
        ("$a_1 * b_2 * c$", "a₁ * b₂ * c"),
        ("$$E = mc^2$$", "E = mc²"),
        ("it costs $5 and $6 more", "it costs $5 and $6 more"),
        ("`$x^2$`", "$x^2$"),
    ],
)
def test_markdown_leaves_formulas_alone(text: str, shown: str) -> None:
    assert render_markdown(text).plain == shown


@pytest.mark.parametrize("theme", make_themes(), ids=lambda theme: theme.name)
def test_muted_text_is_weaker_than_text_and_readable(theme) -> None:
    ground = Color.parse(theme.background)
    muted = contrast(Color.parse(theme.variables["muted"]), ground)
    text = contrast(Color.parse(theme.foreground), ground)
    assert 4.5 <= muted < text


def contrast(one: Color, other: Color) -> float:
    bright, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (bright + 0.05) / (dark + 0.05)


def luminance(color: Color) -> float:
    parts = []
    for value in color.normalized:
        low = value / 12.92
        parts.append(low if value <= 0.03928 else ((value + 0.055) / 1.055) ** 2.4)
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]


def test_what_is_kept_of_one_text_is_not_shown_in_another() -> None:
    table = "| a | b |\n|---|---|\n| x | y |\n| `x` | **y** |\n"
    content = render_markdown(table, 40)
    styles = [span.style for span in content.spans if span.style != "$muted"]
    assert styles == ["bold", "$text-accent", "bold"]
    assert render_markdown(table, 40).is_same(content)
    plain = "see [a] and [b]\n"
    assert render_markdown(plain).plain == "see [a] and [b]"
    first = render_markdown(f"{plain}\n[a]: http://one\n")
    assert first.plain == "see a (http://one) and [b]"
    second = render_markdown(f"{plain}\n[a]: http://two\n")
    assert second.plain == "see a (http://two) and [b]"


def test_a_row_more_parses_no_cell_again(monkeypatch: pytest.MonkeyPatch) -> None:
    parsed = []

    def parse(text: str) -> list[Token]:
        parsed.append(text)
        return parse_inline(text)

    monkeypatch.setattr(inline, "parse_inline", parse)
    rows = "| name | kept |\n|---|---|\n| one of few | 1 |\n"
    render_markdown(rows, 40)
    parsed.clear()
    render_markdown(f"{rows}| two of few | kept not |\n", 40)
    assert parsed == ["two of few", "kept not"]
