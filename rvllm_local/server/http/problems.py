"""What can be wrong with a request, as a status and a text, and how each API says it.

Texts name fields and values of parameters; they never quote a prompt.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from rvllm_local import errors

_ANTHROPIC_KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    529: "overloaded_error",
}


class Problem(Exception):  # noqa: N818 (it is no bug: the usual end of a bad request)
    """A refusal or a failure.

    `code` is machine-readable. `retry_after_s` says when trying again makes sense,
    `allowed` which methods a path has. `overflow` are the tokens of a prompt that is
    too long, and the most that fit. `details` is an object for clients of Anthropic's
    API that look for one.
    """

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        parameter: str | None = None,
        retry_after_s: float | None = None,
        allowed: str | None = None,
        overflow: tuple[int, int] | None = None,
        details: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code = status, message, code
        self.parameter = parameter
        self.retry_after_s = retry_after_s
        self.allowed = allowed
        self.overflow = overflow
        self.details = details

    @property
    def kind(self) -> str:
        """OpenAI's error type."""
        if self.status == 401:
            return "authentication_error"
        if self.status == 403:
            return "permission_error"
        if self.status == 429:
            return "rate_limit_error"
        return "invalid_request_error" if self.status < 500 else "server_error"

    def headers(self) -> dict[str, str]:
        """The headers that tell a client whether to try again, and with which method."""
        headers = {"x-should-retry": "false"}
        if self.retry_after_s is not None:
            headers["x-should-retry"] = "true"
            headers["retry-after"] = str(max(1, math.ceil(self.retry_after_s)))
        if self.allowed is not None:
            headers["allow"] = self.allowed
        return headers

    def openai(self) -> dict[str, Any]:
        """The body in OpenAI's shape."""
        return {
            "error": {
                "message": self._openai_message(),
                "type": self.kind,
                "param": self.parameter,
                "code": self.code,
            }
        }

    def anthropic(self) -> dict[str, Any]:
        """The body in Anthropic's shape."""
        kind = _ANTHROPIC_KINDS.get(
            self.status, "invalid_request_error" if self.status < 500 else "api_error"
        )
        error: dict[str, Any] = {"type": kind, "message": self._anthropic_message()}
        if self.details is not None:
            error["details"] = dict(self.details)
        return {"type": "error", "error": error}

    def ollama(self) -> dict[str, Any]:
        """The body in Ollama's shape. A model is not found in the words that it uses."""
        if self.code == "model_not_found":
            return {"error": f"model not found: {self.message}"}
        return {"error": self.message}

    def _openai_message(self) -> str:
        """The text; of an overflow in the words that OpenAI's clients look for."""
        if self.overflow is None:
            return self.message
        tokens, most = self.overflow
        return (
            f"This model's maximum context length is {most + 1} tokens. However, your "
            f"messages resulted in {tokens} tokens. Please reduce the length of the "
            "messages."
        )

    def _anthropic_message(self) -> str:
        """The text; of an overflow in the words that Anthropic's clients look for."""
        if self.overflow is None:
            return self.message
        tokens, most = self.overflow
        return f"prompt is too long: {tokens} tokens > {most} maximum"


def bad_request(
    message: str, parameter: str | None = None, code: str | None = None
) -> Problem:
    """A 400 that names the field it is about."""
    return Problem(400, message, code, parameter)


def unsupported(name: str, allowed: Sequence[Any]) -> Problem:
    """The refusal of a field whose value would change something.

    `allowed` are the values at which it asks for nothing.
    """
    remedy = "leave it out"
    if allowed:
        values = ", ".join(json.dumps(value) for value in allowed)
        remedy += f", or give {values}"
    message = f"{name} is not supported by this server; {remedy}"
    return bad_request(message, name, "unsupported")


def shutting_down() -> Problem:
    """What those are told who come, or are still there, as the server ends."""
    text = "the server is shutting down"
    return Problem(503, text, "shutting_down", retry_after_s=5.0)


def problem_of(error: BaseException) -> Problem:
    """Any error as a problem; the text of one that is not the project's own stays inside."""
    match error:
        case Problem():
            return error
        case errors.QueueFullError():
            return Problem(
                429, str(error), "queue_full", retry_after_s=error.retry_after_s
            )
        case errors.ContextOverflowError():
            return Problem(
                400,
                str(error),
                "context_length_exceeded",
                error.parameter,
                overflow=error.tokens_and_limit,
            )
        case errors.UnsupportedFieldError():
            return Problem(400, str(error), "unsupported", error.parameter)
        case errors.ParameterError():
            return Problem(400, str(error), None, error.parameter or None)
        case errors.ModelNotFoundError():
            return Problem(404, str(error), "model_not_found", "model")
        case errors.MemoryBudgetError():
            return Problem(400, str(error), "memory_budget", "model")
        case errors.UnsupportedModelError() | errors.ModelFileError():
            return Problem(400, str(error), "model_unusable", "model")
        case errors.EngineCrashedError():
            return Problem(503, str(error), "engine_restarting", retry_after_s=2.0)
        case errors.EngineClosedError():
            return Problem(503, str(error), "shutting_down", retry_after_s=5.0)
        case errors.RvllmError():
            return Problem(500, str(error), "engine_error")
        case _:
            return Problem(
                500,
                f"the server failed with {type(error).__name__}; see its log",
                "internal_error",
            )
