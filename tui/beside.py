"""Whether a model has room on this machine, alone or beside the present one. Pure.

Bytes become GB of ten to the ninth, as everywhere in the chat.
"""

from __future__ import annotations

from rvllm_local.tui.sanitise import clean_line
from rvllm_local.tui.state import ChatSession, ModelInfo


def refuse_alone(info: ModelInfo) -> str:
    """Why a model does not fit, in numbers where they are known; or nothing."""
    if info.fits is not False:
        return ""
    name = clean_line(info.id, 60)
    if info.needed is None or info.room is None:
        return f"{name} does not fit this machine's memory; take a smaller one"
    numbers = f"needs about {_gb(info.needed)}, and models may take {_gb(info.room)}"
    return f"{name} {numbers} here; take a smaller one"


def refuse_beside(
    info: ModelInfo,
    session: ChatSession,
) -> str:
    """Why a model cannot be loaded while the present one stays; or nothing.

    A model whose size is told by the server is loaded already.
    """
    if problem := refuse_alone(info):
        return problem
    is_loaded = info.served and info.size is not None
    view = session.engine
    if is_loaded or view is None or info.needed is None:
        return ""
    present, budget = view.memory.get("total"), view.memory.get("budget")
    if not present or not budget or present + info.needed <= budget:
        return ""
    name, other = clean_line(info.id, 60), clean_line(session.model, 60)
    both = f"together {_gb(present + info.needed)}"
    return (
        f"{name} needs about {_gb(info.needed)} beside the {_gb(present)} of {other}:"
        f" {both}, and models may take {_gb(budget)} here"
    )


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f} GB"
