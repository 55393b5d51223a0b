"""Chat templates as transformers renders them.

It is imported by the first test that asks for a text, and by no process that collects tests.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest


def reference_text(
    template: str,
    messages: Sequence[dict[str, Any]],
    tools: Sequence[dict[str, Any]] | None,
    **options: Any,
) -> str:
    """The reference's text. Where transformers is missing, the test is skipped."""
    module = pytest.importorskip("transformers.utils.chat_template_utils")
    texts, _ = module.render_jinja_template(
        [messages], tools, chat_template=template, **options
    )
    return str(texts[0])
