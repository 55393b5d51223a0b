"""How long a chat request lets the model think, in whatever form the client says it."""

from __future__ import annotations

from rvllm_local.server.api.common import EFFORT_TOKENS, checked_budget
from rvllm_local.server.api.openai.schema import ChatRequest
from rvllm_local.server.http.problems import bad_request


def thinking_budget(request: ChatRequest) -> int | None:
    """Tokens of thinking; None leaves it to the model. Raises `Problem`.

    One form is enough; several must agree.
    """
    budgets = _budgets(request)
    if len(set(budgets.values())) > 1:
        names = list(budgets)
        raise bad_request(
            f"{' and '.join(names)} ask for different amounts of thinking; give one",
            names[0],
        )
    return next(iter(budgets.values()), None)


def thinking_effort(request: ChatRequest) -> str | None:
    """The word for an effort, for templates that know words."""
    effort: str | None = request.reasoning_effort
    if effort is None and request.reasoning is not None:
        effort = request.reasoning.effort
    if effort is None and isinstance(request.think, str):
        effort = request.think
    return None if effort == "none" else effort


def thinking_switch(request: ChatRequest) -> bool | None:
    """True if the client asks for thoughts by a switch; None if it says nothing."""
    thinking, reasoning = request.thinking, request.reasoning
    is_asked = (
        request.enable_thinking is True
        or request.think is True
        or (thinking is not None and thinking.type == "enabled")
        or (reasoning is not None and reasoning.enabled is True)
    )
    return True if is_asked else None


def _budgets(request: ChatRequest) -> dict[str, int | None]:
    """What each form that is given asks for, by its name."""
    budgets: dict[str, int | None] = {}
    if request.reasoning_budget is not None:
        # A budget is exact; an effort beside it is a word for the template.
        budget = checked_budget(request.reasoning_budget, "reasoning_budget")
        budgets["reasoning_budget"] = budget
    elif request.reasoning_effort is not None:
        budgets["reasoning_effort"] = EFFORT_TOKENS[request.reasoning_effort]
    if request.thinking_budget is not None:
        budget = checked_budget(request.thinking_budget, "thinking_budget")
        budgets["thinking_budget"] = budget
    if request.enable_thinking is False:
        budgets["enable_thinking"] = 0
    switches = request.chat_template_kwargs or {}
    if switches.get("enable_thinking") is False:
        budgets["chat_template_kwargs.enable_thinking"] = 0
    if request.think is False:
        budgets["think"] = 0
    elif isinstance(request.think, str):
        budgets["think"] = EFFORT_TOKENS[request.think]
    budgets |= _thinking(request)
    budgets |= _reasoning(request)
    return budgets


def _thinking(request: ChatRequest) -> dict[str, int | None]:
    thinking = request.thinking
    if thinking is None:
        return {}
    if thinking.type == "disabled":
        return {"thinking": 0}
    if thinking.budget_tokens is None:
        return {}
    return {
        "thinking": checked_budget(thinking.budget_tokens, "thinking.budget_tokens")
    }


def _reasoning(request: ChatRequest) -> dict[str, int | None]:
    reasoning = request.reasoning
    if reasoning is None:
        return {}
    if reasoning.enabled is False:
        return {"reasoning": 0}
    if reasoning.max_tokens is not None:
        budget = checked_budget(reasoning.max_tokens, "reasoning.max_tokens")
        return {"reasoning": budget}
    if reasoning.effort is not None:
        return {"reasoning": EFFORT_TOKENS[reasoning.effort]}
    return {}
