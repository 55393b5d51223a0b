"""The options of an engine, declared once.

The configuration file, the environment, the flags, `LLM(...)` and the frame to an
engine's process are made from `EngineOptions`. Knows nothing of MLX.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict, get_type_hints

import msgspec
from msgspec import Meta

from rvllm_local.errors import ConfigError
from rvllm_local.option import LARGEST, Option, expanded, option_of, parse_bytes

_BYTES = {"unit": "bytes"}
Bytes = Annotated[int, Meta(ge=1, le=LARGEST, extra=_BYTES)]
BytesFromZero = Annotated[int, Meta(ge=0, le=LARGEST, extra=_BYTES)]
Count = Annotated[int, Meta(ge=1, le=LARGEST)]
ContextLength = Annotated[int, Meta(ge=32, le=LARGEST)]  # a block of the KV cache
CountFromZero = Annotated[int, Meta(ge=0, le=LARGEST)]
Attention = Literal["auto", "reference", "kernels"]
Cache = Literal["auto", "off", "memory", "disk"]
KVDtype = Literal["auto", "int8"]
Dtype = Literal["auto", "stored", "float16"]
Backend = Literal["any", "ring", "jaccl", "nccl", "mpi"]
# Of each rank its device to each other one, or several; None to itself.
RdmaDevices = tuple[tuple[str | tuple[str, ...] | None, ...], ...]
# "auto", "off", "ngram", "mtp", or the name of a model
Draft = Annotated[str, Meta(extra={"unit": "name"})]
_NO_TEXT = ("adapters", "hosts")  # fields that are more than a value
CpuWeights = Literal["auto", "quantized", "float32"]


def _about(text: str) -> Meta:
    return Meta(description=text)


class RankHosts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where the ranks of a job are, rank 0 first: an IP address and a port each.

    The file `secret` holds what they prove themselves by. `backend` is the one of MLX
    that is meant where no option says otherwise. Without a port of its own a rank is
    somewhere that only rank 0's address tells.
    """

    addresses: tuple[tuple[str, int], ...]
    secret: str
    backend: Backend = "any"
    devices: RdmaDevices = ()


class EngineOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What shapes an engine. Memory is in bytes, lengths in tokens.

    None means that the runtime chooses. More than `max_rows + max_waiting` open
    choices are refused at once. `adapters` are LoRA adapters: a name and a folder
    each. Without `hosts` all ranks are processes of this machine.

    Raises `ConfigError` for a value that cannot be.
    """

    kv_memory: Annotated[
        Bytes | None, _about("memory for the KV arenas, like 256MB")
    ] = None
    max_rows: Annotated[Count, _about("sequences that run at once")] = 16
    prefill_chunk: Annotated[Count, _about("most prompt tokens in one step")] = 512
    context_length: Annotated[
        ContextLength | None, _about("shorten the model's context, in tokens")
    ] = None
    self_check: Annotated[
        bool, _about("compare the model with a plain forward pass at its start")
    ] = True
    attention: Annotated[
        Attention, _about("auto, reference (plain MLX) or kernels")
    ] = "auto"
    cache: Annotated[
        Cache,
        _about("keep prefixes in memory, on disk too, or off; auto: disk for a server"),
    ] = "auto"
    disk_cache_bytes: Annotated[
        Bytes, _about("most that prefixes take on disk, like 8GB")
    ] = 8 * 10**9
    cache_dir: Annotated[
        str | None, _about("the folder of models and of prefixes on disk")
    ] = None
    kv_dtype: Annotated[KVDtype, _about("auto (the model's own) or int8")] = "auto"
    cpu_weights: Annotated[
        CpuWeights,
        _about("a quantized model on a CPU: auto, quantized, or widened to float32"),
    ] = "auto"
    dtype: Annotated[
        Dtype,
        _about("of bfloat16 weights: stored, or float16; auto: float16 on an M1 or M2"),
    ] = "auto"
    deterministic: Annotated[bool, _about("the same tokens in any company")] = False
    step_target_ms: Annotated[
        Count | None,
        _about("longest step that also reads prompts, in milliseconds"),
    ] = None
    draft: Annotated[
        Draft,
        _about(
            "guess tokens from the text so far (ngram), by a smaller model (its name), "
            "by the model's own head for several tokens (mtp), or off; auto: ngram on a "
            "CPU where a step can check several tokens"
        ),
    ] = "auto"
    max_waiting: Annotated[CountFromZero, _about("requests that may wait")] = 256
    system_reserve: Annotated[
        BytesFromZero | None,
        _about("memory for the rest of the machine, like 4GB"),
    ] = None
    ranks: Annotated[
        Count, _about("processes that share the model, each with a part of it")
    ] = 1
    pipeline: Annotated[
        bool, _about("of several ranks each has whole layers, not a part of each")
    ] = False
    backend: Annotated[
        Backend,
        _about(
            "MLX's back end between ranks: ring, jaccl, nccl or mpi; any: jaccl where "
            "the hosts file has rdma devices, what mlx.launch has chosen, else the ring"
        ),
    ] = "any"
    adapters: tuple[tuple[str, str], ...] = ()
    hosts: RankHosts | None = None

    def __post_init__(self) -> None:
        for option in option_table().values():
            option.check(getattr(self, option.name))
        names = [name for name, _ in self.adapters]
        for name in names:
            if names.count(name) > 1:
                raise ConfigError(
                    f"adapters has two of the name {name!r:.80}; give each another one"
                )
        if self.ranks > 1:
            self._check_ranks()

    def _check_ranks(self) -> None:
        if self.hosts is not None and len(self.hosts.addresses) != self.ranks:
            raise ConfigError(
                f"ranks cannot be {self.ranks}: "
                f"the hosts are {len(self.hosts.addresses)}"
            )

    @property
    def is_pipeline(self) -> bool:
        """Several ranks have layers of their own each."""
        return self.pipeline and self.ranks > 1

    @property
    def ranks_here(self) -> int:
        """The most ranks that share one machine's memory."""
        if self.hosts is None:
            return self.ranks
        machines = [machine for machine, _ in self.hosts.addresses]
        return max(machines.count(machine) for machine in machines)

    @property
    def drafts_by_model(self) -> bool:
        """`draft` is the name of a model, or the model's own head."""
        return self.draft not in ("auto", "off", "ngram")

    @property
    def drafts_by_head(self) -> bool:
        """The model has a head of its own that predicts several tokens."""
        return self.draft == "mtp"


class OptionArguments(TypedDict, total=False):
    """The fields of `EngineOptions` as a caller in Python writes them."""

    kv_memory: int | str | None
    max_rows: int
    prefill_chunk: int
    context_length: int | None
    self_check: bool
    attention: Attention
    cache: Cache
    disk_cache_bytes: int | str
    cache_dir: Path | str | None
    kv_dtype: KVDtype
    cpu_weights: CpuWeights
    dtype: Dtype
    deterministic: bool
    step_target_ms: int | None
    draft: Draft
    max_waiting: int
    system_reserve: int | str | None
    ranks: int
    pipeline: bool
    backend: Backend
    adapters: Mapping[str, Path | str] | None


@functools.cache
def option_table() -> dict[str, Option]:
    """All options that text can give, by name, in the order of `EngineOptions`."""
    hints = get_type_hints(EngineOptions, include_extras=True)
    table = {}
    for field in msgspec.structs.fields(EngineOptions):
        if field.name not in _NO_TEXT:
            table[field.name] = option_of(field.name, hints[field.name], field.default)
    return table


def options_from_arguments(arguments: Mapping[str, Any]) -> EngineOptions:
    """The options that a caller in Python gives; see `OptionArguments`.

    Raises `ConfigError` for a value, and `TypeError` for a name, that cannot be.
    """
    values = dict(arguments)
    for name, option in option_table().items():
        if option.kind == "size" and values.get(name) is not None:
            values[name] = parse_bytes(values[name])
    if values.get("cache_dir") is not None:
        values["cache_dir"] = str(expanded(str(values["cache_dir"])))
    adapters = values.get("adapters") or {}
    values["adapters"] = tuple((name, str(path)) for name, path in adapters.items())
    return EngineOptions(**values)
