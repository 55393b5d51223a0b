"""The Python API: `LLM` loads a model, or connects to a server that has, and generates, streams and chats.

Text goes in and out here; the engine below deals in token ids. Safe to use from several threads.
"""

from __future__ import annotations

import operator
import types
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import Any, Unpack

from rvllm_local import host
from rvllm_local.clients.contract import Client, make_requests, open_stream
from rvllm_local.clients.stream import TokenStream
from rvllm_local.config import DEFAULT_MODEL
from rvllm_local.errors import ParameterError
from rvllm_local.options import (
    EngineOptions,
    OptionArguments,
    options_from_arguments,
)
from rvllm_local.types import (
    Completion,
    FinishReason,
    SamplingParams,
    StreamEvent,
    TokenLogprob,
)

_UNBOUNDED = 10**9  # a script may hand over as many prompts as it likes
_NOT_A_PROMPT = "a prompt must be text or a list of integer token ids"
Prompt = str | Sequence[int]
Message = Mapping[str, Any]


class LLM:
    """A model, its KV arenas and its engine, in this process.

    `model` is a catalogue name, a local folder, a .gguf file or a hub id. `kv_memory` is what the KV arenas may
    take, in bytes or as "256MB". `context_length` shortens the model's own context; `max_rows` is how many
    sequences run at once; `prefill_chunk` the most prompt tokens in one step; `attention` chooses the
    back end ("auto" takes the kernels where they run and agree); `cache` keeps prefixes in the arena ("memory") and
    on disk too ("disk", at most `disk_cache_bytes`). Models and cached KV are kept under `cache_dir`; `kv_dtype="int8"` halves or quarters the KV;
    `deterministic` makes tokens independent of batch, chunking and cache; `adapters` are folders of LoRA adapters by the
    names under which requests choose them; `progress` is told what a fetch is doing.

    Raises `ConfigError` for an option that cannot be, `ModelNotFoundError`, `ModelFileError`, `UnsupportedModelError` or
    `MemoryBudgetError`.
    """

    def __init__(
        self,
        model: str | Path = DEFAULT_MODEL,
        *,
        progress: Callable[[str], None] | None = None,
        **options: Unpack[OptionArguments],
    ) -> None:
        from rvllm_local.models.cache_folder import default_cache_folder

        arguments = {"max_waiting": _UNBOUNDED, **options}
        if options.get("cache_dir") is None:
            arguments["cache_dir"] = default_cache_folder()
        self._open(str(model), options_from_arguments(arguments), progress)

    @classmethod
    def from_options(
        cls,
        model: str,
        options: EngineOptions,
        progress: Callable[[str], None] | None = None,
    ) -> LLM:
        """A model with options that were put together elsewhere, as by a configuration."""
        llm = cls.__new__(cls)
        llm._open(model, options, progress)
        return llm

    @classmethod
    def connect(
        cls,
        model: str = DEFAULT_MODEL,
        address: str = "http://127.0.0.1:8473",
        *,
        api_key: str | None = None,
    ) -> LLM:
        """A model whose engine is a server's (`rvllm serve`), which is shared with all its other clients.

        Text becomes tokens here, so that the model's files must be on this machine too. `api_key` defaults to
        RVLLM_API_KEY. Raises `EngineCrashedError` where no server answers.
        """
        from rvllm_local.clients.http import HttpClient
        from rvllm_local.models.locate import locate
        from rvllm_local.text.tokenizer_files import read_tokenizer

        llm = cls.__new__(cls)
        files = locate(model)
        llm.tokenizer = read_tokenizer(files)
        llm._client = HttpClient(address, files.name, api_key=api_key)
        return llm

    def _open(
        self, model: str, options: EngineOptions, progress: Callable[[str], None] | None
    ) -> None:
        host.prepare()
        from rvllm_local.clients.in_process import InProcessClient
        from rvllm_local.engine.loop import EngineLoop
        from rvllm_local.engine.startup.build import open_core
        from rvllm_local.models.locate import locate
        from rvllm_local.models.progress import silent
        from rvllm_local.text.grammar.compiled import Grammars
        from rvllm_local.text.tokenizer_files import read_tokenizer

        cache_dir = Path(options.cache_dir) if options.cache_dir else None
        files = locate(model, progress or silent, cache_dir=cache_dir)
        self.tokenizer = read_tokenizer(files)
        loop = EngineLoop(lambda: open_core(files, self.tokenizer, options))
        limits = loop.call(lambda core: core.limits)
        grammars = Grammars(self.tokenizer, limits.vocab_size, limits.eos_token_ids)
        self._client: Client = InProcessClient(loop, limits, grammars)

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        adapter: str | Sequence[str | None] | None = None,
    ) -> list[Completion]:
        """Answer one or many prompts, all at once; each is text or token ids, with its own `params` if they are a list.

        `adapter` names the LoRA adapter to answer with, one for all or one each (None for the model as it is).

        Returns the completions in the order of the prompts, the `n` choices of each together.
        """
        asked = _paired(_as_prompts(prompts), params)
        adapters = (
            [adapter] * len(asked)
            if isinstance(adapter, str) or not isinstance(adapter, Sequence)
            else list(adapter)
        )
        if len(adapters) != len(asked):
            raise ParameterError(
                "adapter",
                f"there are {len(asked)} prompts and {len(adapters)} adapters; give one each",
            )
        streams: list[TokenStream] = []
        completions: list[Completion] = []
        try:
            for (prompt, own), chosen in zip(asked, adapters, strict=True):
                streams.append(self._submit(prompt, own, adapter=chosen))
            for stream, (_, own) in zip(streams, asked, strict=True):
                completions.extend(collect(stream, own.n))
        finally:
            for stream in streams:
                stream.close()
        return completions

    def stream(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        adapter: str | None = None,
    ) -> Iterator[StreamEvent]:
        """Answer one prompt event by event. Leaving the loop early cancels the request."""
        return _closing(
            self._submit(prompt, params or SamplingParams(), adapter=adapter)
        )

    def chat(
        self,
        messages: Sequence[Message],
        params: SamplingParams | None = None,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        response_format: Mapping[str, Any] | None = None,
        adapter: str | None = None,
        **template: Any,
    ) -> list[Completion]:
        """Answer a conversation through the model's chat template, which gets `tools` and the other keywords.

        `response_format` is OpenAI's (text, json_object, json_schema), or `{"type": "regex", "regex": ...}`,
        `{"type": "choice", "choices": [...]}` or `{"type": "grammar", "grammar": ...}` in Lark's form; the output is held
        to it. Raises `ParameterError` for one that cannot be enforced.
        """
        params = params or SamplingParams()
        prompt = self.tokenizer.encode_chat(messages, tools=tools, **template)
        with self._submit(prompt, params, _grammar(response_format), adapter) as stream:
            return collect(stream, params.n)

    def chat_stream(
        self,
        messages: Sequence[Message],
        params: SamplingParams | None = None,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        response_format: Mapping[str, Any] | None = None,
        adapter: str | None = None,
        **template: Any,
    ) -> Iterator[StreamEvent]:
        """Like `chat`, event by event."""
        prompt = self.tokenizer.encode_chat(messages, tools=tools, **template)
        return _closing(
            self._submit(
                prompt, params or SamplingParams(), _grammar(response_format), adapter
            )
        )

    def stats(self) -> dict[str, int | float | str]:
        """Blocks, hits, preemptions, back end and dispatches."""
        return self._client.stats()

    def close(self) -> None:
        """End open requests and free the model. Safe to call twice."""
        self._client.close()

    def _submit(
        self,
        prompt: Prompt,
        params: SamplingParams,
        grammar: str | None = None,
        adapter: str | None = None,
    ) -> TokenStream:
        if not isinstance(params, SamplingParams):
            raise ParameterError(
                "params", f"params must be SamplingParams, not {type(params).__name__}"
            )
        if not isinstance(adapter, str | None):
            raise ParameterError(
                "adapter",
                f"adapter must be a name or None, not {type(adapter).__name__}",
            )
        token_ids = (
            self.tokenizer.encode(prompt)
            if isinstance(prompt, str)
            else _token_ids(prompt)
        )
        return open_stream(
            self._client,
            make_requests(token_ids, params, grammar=grammar, adapter=adapter),
        )

    def __enter__(self) -> LLM:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: types.TracebackType | None,
    ) -> None:
        self.close()


def _as_prompts(prompts: Any) -> list[Prompt]:
    """One prompt or many: a string and a list of ids are one prompt."""
    if isinstance(prompts, str):
        return [prompts]
    if not hasattr(prompts, "__len__") or isinstance(
        prompts, Mapping | Set | bytes | bytearray
    ):
        raise ParameterError("prompt", f"{_NOT_A_PROMPT}, not {type(prompts).__name__}")
    return [prompts] if len(prompts) == 0 or _is_integer(prompts[0]) else list(prompts)


def _paired(prompts: list[Prompt], params: Any) -> list[tuple[Prompt, SamplingParams]]:
    """Each prompt with its sampling parameters: one for all, or one each."""
    if params is None or isinstance(params, SamplingParams):
        return [(prompt, params or SamplingParams()) for prompt in prompts]
    if not isinstance(params, Sequence):
        raise ParameterError(
            "params",
            f"params must be SamplingParams or a list of them, not {type(params).__name__}",
        )
    if len(params) != len(prompts):
        raise ParameterError(
            "params",
            f"there are {len(prompts)} prompts and {len(params)} params; give one, or one each",
        )
    return list(zip(prompts, params, strict=True))


def _token_ids(prompt: Any) -> list[int]:
    """A prompt of token ids, numpy's integers among them."""
    if not hasattr(prompt, "__iter__") or isinstance(prompt, bytes | bytearray):
        raise ParameterError("prompt", f"{_NOT_A_PROMPT}, not {type(prompt).__name__}")
    token_ids = list(prompt)
    if wrong := [token for token in token_ids if not _is_integer(token)]:
        raise ParameterError("prompt", f"{_NOT_A_PROMPT}; {wrong[0]!r:.40} is no id")
    return [operator.index(token) for token in token_ids]


def _is_integer(value: Any) -> bool:
    return (
        hasattr(value, "__index__")
        and not isinstance(value, bool)
        and getattr(value, "ndim", 0) == 0
    )


def _grammar(response_format: Mapping[str, Any] | None) -> str | None:
    """The grammar that enforces a response format; None for plain text."""
    if response_format is None:
        return None
    if not isinstance(response_format, Mapping):
        raise ParameterError(
            "response_format",
            f"response_format must be an object, not {type(response_format).__name__}",
        )
    from rvllm_local.text.grammar.formats import grammar_for_format

    return grammar_for_format(response_format)


def _closing(stream: TokenStream) -> Iterator[StreamEvent]:
    with stream:
        yield from stream


def collect(stream: Iterator[StreamEvent], num_choices: int) -> list[Completion]:
    """Read a stream to its end and put each choice's events together."""
    events: list[list[StreamEvent]] = [[] for _ in range(num_choices)]
    for event in stream:
        events[event.index].append(event)
    return [_completion(index, parts) for index, parts in enumerate(events)]


def _completion(index: int, events: Sequence[StreamEvent]) -> Completion:
    logprobs: list[TokenLogprob] = [
        part for event in events for part in event.logprobs or ()
    ]
    reason = events[-1].finish_reason
    return Completion(
        "".join(event.text for event in events),
        tuple(token for event in events for token in event.token_ids),
        reason if reason is not None else FinishReason.ERROR,
        tuple(logprobs) if logprobs else None,
        events[0].cached_tokens,
        index,
    )
