"""Every error that a user can meet, with what was wrong and what to do about it.

Messages are one line and name the offending value; they never contain a prompt.
"""

from __future__ import annotations


class RvllmError(Exception):
    """Base of all errors raised on purpose; `str(error)` is fit to show to a user."""


class ParameterError(RvllmError, ValueError):
    """A sampling parameter or request field is out of its range.

    `parameter` is the field's public name, so that an API can point at it.
    """

    def __init__(self, parameter: str, message: str) -> None:
        super().__init__(message)
        self.parameter = parameter


class UnsupportedFieldError(ParameterError):
    """A field or a value is known, and cannot be honoured here."""


class TemplateRefusedError(ParameterError):
    """The model's chat template does not take the conversation as it is."""


class TemplateLimitError(ParameterError):
    """The model's chat template runs for too long, or makes too much."""


class ContextOverflowError(ParameterError):
    """The prompt and what it asks for do not fit the model's context or the KV arena.

    `tokens_and_limit` are the prompt's tokens (or the least that they can be) and the
    most that fit, where the prompt alone is too long.
    """

    def __init__(
        self,
        parameter: str,
        message: str,
        tokens_and_limit: tuple[int, int] | None = None,
    ) -> None:
        super().__init__(parameter, message)
        self.tokens_and_limit = tokens_and_limit


class GrammarError(ParameterError):
    """A grammar cannot be compiled, is too large, or was not followed; the message says why."""

    def __init__(self, message: str, parameter: str = "response_format") -> None:
        super().__init__(parameter, message)


class ConfigError(RvllmError, ValueError):
    """A flag, environment variable or configuration file holds a value that cannot be used."""


class ModelNotFoundError(RvllmError):
    """No catalogue entry, folder, .gguf file or hub repository has this name."""


class ModelFileError(RvllmError):
    """A model file is corrupt, truncated or not what its header says."""


class ChecksumError(ModelFileError):
    """A downloaded file's sha256 is not the expected one."""


class DownloadError(RvllmError):
    """A model could not be fetched; nothing was left half-made."""


class UnsupportedModelError(RvllmError):
    """The architecture, quantization or attention kind cannot be served right."""


class MemoryBudgetError(RvllmError):
    """The memory plan does not fit the budget."""


class EngineError(RvllmError):
    """The engine failed; the request that carries this error did not complete."""


class QueueFullError(EngineError):
    """Too many requests wait; this one was refused at once. `retry_after_s` is a guess at when to come back."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class EngineCrashedError(EngineError):
    """The engine's process ended while the request was open, or is being restarted."""


class EngineClosedError(EngineError):
    """The engine was closed while the request was open."""


class HistoryError(RvllmError):
    """The chat history cannot be read or written; nothing that was saved before is lost."""


class EndpointError(RvllmError):
    """The server that answers the chat cannot be reached, refused, or broke off."""


def error_of(
    kind: str | None, message: str, parameter: str | None = None
) -> RvllmError:
    """An error that crossed a process as the name of its class, its text, and the field that it is about."""
    error_class = globals().get(kind or "EngineError")
    if not (isinstance(error_class, type) and issubclass(error_class, RvllmError)):
        return RvllmError(message)
    if issubclass(error_class, GrammarError):
        return error_class(message, parameter or "response_format")
    if issubclass(error_class, ParameterError):
        return error_class(parameter or "", message)
    return (
        QueueFullError(message, 1.0)
        if error_class is QueueFullError
        else error_class(message)
    )


# What building or calling a model definition can end in where a configuration lies:
# lookups, sizes that overflow or disagree, shapes that MLX refuses.
DEFINITION_ERRORS = (
    TypeError,
    ValueError,
    LookupError,
    AttributeError,
    AssertionError,
    ArithmeticError,
    RuntimeError,
)
