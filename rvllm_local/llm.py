"""The Python API: `LLM` loads a model, or connects to a server that has, and generates, streams and chats.

Text goes in and out here; the engine below deals in token ids. Safe to use from several threads.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from rvllm_local import host
from rvllm_local.clients.contract import Client, make_requests, open_stream
from rvllm_local.clients.stream import TokenStream
from rvllm_local.config import DEFAULT_MODEL
from rvllm_local.conversation.collect import collect
from rvllm_local.conversation.prompt_lists import (
    Prompt,
    adapters_for_each,
    as_prompts,
    checked_adapter,
    checked_params,
    params_for_each,
    token_ids_of,
)
from rvllm_local.options import (
    EngineOptions,
    OptionArguments,
    options_from_arguments,
)
from rvllm_local.types import (
    ChatEvent,
    Completion,
    SamplingParams,
    StreamEvent,
)

if TYPE_CHECKING:
    from rvllm_local.conversation.model import ConversationModel
    from rvllm_local.conversation.pooled import Vectors

_UNBOUNDED = 10**9  # a script may hand over as many prompts as it likes
Message = Mapping[str, Any]


class LLM:
    """A model, its KV arenas and its engine, in this process.

    `model` is a catalogue name, a local folder, a .gguf file or a hub id. `kv_memory` is what the KV arenas may
    take, in bytes or as "256MB". `context_length` shortens the model's own context; `max_rows` is how many
    sequences run at once; `prefill_chunk` the most prompt tokens in one step; `attention` chooses the
    back end ("auto" takes the kernels where they run and agree); `cache` keeps prefixes in the arena ("memory", which "auto" is here) and
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
        from rvllm_local.conversation.model import ConversationModel, detect_style
        from rvllm_local.models.locate import locate
        from rvllm_local.text.tokenizer_files import read_tokenizer

        files = locate(model)
        tokenizer = read_tokenizer(files)
        client = HttpClient(address, files.name, api_key=api_key)
        style = detect_style(files, tokenizer)
        return cls.over(
            client, ConversationModel(files.name, tokenizer, style, client.limits)
        )

    @classmethod
    def over(cls, client: Client, model: ConversationModel) -> LLM:
        """An `LLM` over any way of reaching an engine, which it closes at its end."""
        llm = cls.__new__(cls)
        llm._set(client, model)
        return llm

    def _open(
        self, model: str, options: EngineOptions, progress: Callable[[str], None] | None
    ) -> None:
        host.prepare()
        from rvllm_local.clients.in_process import InProcessClient
        from rvllm_local.conversation.model import ConversationModel, detect_style
        from rvllm_local.engine.loop import EngineLoop
        from rvllm_local.engine.startup.open import open_any_core
        from rvllm_local.models.locate import locate
        from rvllm_local.models.progress import silent
        from rvllm_local.text.grammar.compiled import Grammars
        from rvllm_local.text.tokenizer_files import read_tokenizer

        cache_dir = Path(options.cache_dir) if options.cache_dir else None
        files = locate(model, progress or silent, cache_dir=cache_dir)
        tokenizer = read_tokenizer(files)
        style = detect_style(files, tokenizer)
        loop = EngineLoop(lambda: open_any_core(files, tokenizer, options))
        limits = loop.call(lambda core: core.limits)
        grammars = Grammars(tokenizer, limits.vocab_size, limits.eos_token_ids)
        self._set(
            InProcessClient(loop, limits, grammars),
            ConversationModel(files.name, tokenizer, style, limits),
        )

    def _set(self, client: Client, model: ConversationModel) -> None:
        self._client = client
        self._model = model
        self.tokenizer = model.tokenizer

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        adapter: str | Sequence[str | None] | None = None,
        parse_special: bool = True,
    ) -> list[Completion]:
        """Answer one or many prompts, all at once.

        Each prompt is text or token ids; `params` are for all of them, or a list with one
        each. `adapter` names the LoRA adapter to answer with, for all or one each; None
        is the model as it is. With `parse_special`, special tokens that are written in a
        prompt's text count as such; leave it off for texts of strangers.

        Returns the completions in the order of the prompts, the `n` choices of each
        together.
        """
        each_prompt = as_prompts(prompts)
        each_params = params_for_each(params, len(each_prompt))
        each_adapter = adapters_for_each(adapter, len(each_prompt))
        requests = zip(each_prompt, each_params, each_adapter, strict=True)
        streams: list[TokenStream] = []
        completions: list[Completion] = []
        try:
            for prompt, prompt_params, name in requests:
                stream = self._submit(prompt, prompt_params, name, parse_special)
                streams.append(stream)
            for stream, prompt_params in zip(streams, each_params, strict=True):
                completions.extend(collect(stream, prompt_params.n))
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
        parse_special: bool = True,
    ) -> Iterator[StreamEvent]:
        """Answer one prompt event by event. Leaving the loop early cancels the request."""
        params = checked_params(params)
        return _closing(self._submit(prompt, params, adapter, parse_special))

    def chat(
        self,
        messages: Sequence[Message],
        params: SamplingParams | None = None,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        tool_choice: str | Mapping[str, Any] | None = None,
        parallel_tool_calls: bool = True,
        response_format: Mapping[str, Any] | None = None,
        reasoning_budget: int | None = None,
        continue_final_message: bool = False,
        adapter: str | None = None,
        **template: Any,
    ) -> list[Completion]:
        """Answer a conversation as the server does: text, thinking and calls apart.

        `messages`, `tools`, `tool_choice` and `response_format` have OpenAI's shape;
        beside that, a format may be `{"type": "regex", "regex": ...}`,
        `{"type": "choice", "choices": [...]}` or `{"type": "grammar", "grammar": ...}` in
        Lark's form. The output is held to the format and to the tools' parameters.
        `reasoning_budget` is the most tokens of thinking; None leaves it to the model.
        With `continue_final_message` the answer goes on from the last message, which is
        the assistant's. The other keywords are told to the chat template.

        Raises `ParameterError` for what the server refuses, in the same words.
        """
        params = checked_params(params)
        events = self.chat_stream(
            messages,
            params,
            tools=tools,
            tool_choice=tool_choice,
            parallel_tool_calls=parallel_tool_calls,
            response_format=response_format,
            reasoning_budget=reasoning_budget,
            continue_final_message=continue_final_message,
            adapter=adapter,
            **template,
        )
        return collect(events, params.n)

    def chat_stream(
        self,
        messages: Sequence[Message],
        params: SamplingParams | None = None,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        tool_choice: str | Mapping[str, Any] | None = None,
        parallel_tool_calls: bool = True,
        response_format: Mapping[str, Any] | None = None,
        reasoning_budget: int | None = None,
        continue_final_message: bool = False,
        adapter: str | None = None,
        **template: Any,
    ) -> Iterator[ChatEvent]:
        """Like `chat`, event by event; a tool call comes once it is complete."""
        arguments = {
            "messages": messages,
            "tools": tools,
            "tool_choice": tool_choice,
            "parallel_tool_calls": parallel_tool_calls,
            "response_format": response_format,
            "reasoning_budget": reasoning_budget,
            "continue_final_message": continue_final_message,
            "chat_template_kwargs": template,
        }
        return self._submit_chat(arguments, checked_params(params), adapter)

    def embed(
        self,
        texts: str | Sequence[str],
        *,
        dimensions: int | None = None,
        input_type: str | None = None,
        truncate: bool = False,
    ) -> Vectors:
        """Vectors `[texts, dimensions]` in float32, by an embedding model.

        `dimensions` below the model's keep the first ones. `input_type` names a prompt of
        the model's that goes before each text, as "query" or "document". A text that is
        too long is refused, or cut with `truncate`. Raises `ParameterError`.
        """
        from rvllm_local.conversation import pooled

        pools = pooled.checked_pools(self._client.limits.pools, "embed")
        pooled.check_dimensions(dimensions, pools)
        prompt = pooled.prompt_named(pools, input_type)
        rows = [texts] if isinstance(texts, str) else list(texts)
        inputs = [(prompt + text,) for text in rows]
        parts = pooled.read_inputs(self._client, self.tokenizer, inputs, truncate)
        return pooled.vectors_of(parts, dimensions, pools)

    def rerank(
        self, query: str, documents: Sequence[str], *, top_n: int | None = None
    ) -> list[tuple[int, float]]:
        """Places and relevance (0 to 1) of documents, best first, by a reranking model.

        Long documents are cut. Raises `ParameterError`.
        """
        from rvllm_local.conversation import pooled

        pools = pooled.checked_pools(self._client.limits.pools, "score")
        inputs = pooled.pairs(query, documents, pools)
        parts = pooled.read_inputs(self._client, self.tokenizer, inputs, truncate=True)
        scores = pooled.relevance_of(parts, pools)
        order = pooled.best_first(scores, top_n)
        return [(index, scores[index]) for index in order]

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
        adapter: str | None,
        parse_special: bool,
    ) -> TokenStream:
        if isinstance(prompt, str):
            token_ids = self.tokenizer.encode(prompt, special=parse_special)
        else:
            token_ids = token_ids_of(prompt)
        requests = make_requests(token_ids, params, adapter=checked_adapter(adapter))
        return open_stream(self._client, requests)

    def _submit_chat(
        self, arguments: Mapping[str, Any], params: SamplingParams, adapter: str | None
    ) -> Iterator[ChatEvent]:
        """A conversation's way: read the arguments, prepare the prompt, start it."""
        from rvllm_local.conversation.chat_events import read_chat
        from rvllm_local.conversation.prompts import prepare_chat
        from rvllm_local.conversation.requests import read_arguments

        call = read_arguments(self._model.name, params, arguments)
        prepared = prepare_chat(self._model, call)
        requests = make_requests(
            prepared.prompts[0],
            prepared.params[0],
            grammar=prepared.grammar,
            kept_special=prepared.kept_special,
            num_shared=prepared.num_shared,
            adapter=checked_adapter(adapter),
        )
        stream = open_stream(self._client, requests)
        new_parser = functools.partial(prepared.new_parser, call.callable_tools)
        return read_chat(stream, params.n, new_parser, prepared.left_out)

    def __enter__(self) -> LLM:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: types.TracebackType | None,
    ) -> None:
        self.close()


def _closing(stream: TokenStream) -> Iterator[StreamEvent]:
    with stream:
        yield from stream
