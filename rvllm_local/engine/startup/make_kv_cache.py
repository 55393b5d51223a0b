"""Makes an engine's KV cache: its policy, its store on disk and its swap space."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rvllm_local.attention.probe import probe_state_form
from rvllm_local.engine.detokenizer import Vocabulary
from rvllm_local.engine.disk_tier import DiskTier
from rvllm_local.engine.kv_cache import CachePolicy, KVCacheManager
from rvllm_local.engine.startup.choose_runner import LoadedParts
from rvllm_local.engine.swapper import Swapper
from rvllm_local.errors import ConfigError
from rvllm_local.memory.block_file import HEADER
from rvllm_local.memory.block_io import BlockIO
from rvllm_local.memory.block_scan import store_folder
from rvllm_local.memory.disk_cache import BlockStore
from rvllm_local.memory.state_record import StateForm, form_bytes
from rvllm_local.memory.swap import SwapSpace
from rvllm_local.memory.tables import KVTables
from rvllm_local.options import EngineOptions

logger = logging.getLogger(__name__)

WrapBlockIO = Callable[[BlockIO], BlockIO]
MakeSwapper = Callable[[KVTables, BlockIO, SwapSpace], Swapper]
MakeDiskTier = Callable[[KVTables, BlockIO, BlockStore | None, StateForm], DiskTier]


@dataclass(frozen=True, slots=True)
class Tiers:
    """Makes what moves blocks: within the arenas, out of them, and back."""

    wrap_io: WrapBlockIO = lambda block_io: block_io
    make_swapper: MakeSwapper = Swapper
    make_disk: MakeDiskTier = DiskTier


OF_ONE_PROCESS = Tiers()


def make_kv_cache(
    parts: LoadedParts,
    block_io: BlockIO,
    options: EngineOptions,
    root: bytes,
    text: Vocabulary,
    tiers: Tiers,
) -> KVCacheManager:
    """`root` is the start of the key chains of the model without an adapter."""
    store = None
    form: StateForm = ()
    if options.cache == "disk":
        if parts.layout.has_state:
            form = probe_state_form(parts.loaded.module)
        store = open_store(options, root, form, parts)
    swap_folder = None if options.cache_dir is None else Path(options.cache_dir)
    block_io = tiers.wrap_io(block_io)
    return KVCacheManager(
        parts.kv,
        block_io,
        CachePolicy(reuse=options.cache != "off", decoded=not options.deterministic),
        tiers.make_disk(parts.kv, block_io, store, form),
        tiers.make_swapper(parts.kv, block_io, SwapSpace(swap_folder)),
        show=lambda token: _shown(text, token),
    )


def kv_fingerprint(parts: LoadedParts, options: EngineOptions) -> str:
    """What this process's KV depends on, but for tokens and adapters."""
    fingerprint = f"{parts.loaded.fingerprint}|{parts.layout}|{options.deterministic}"
    if any(shape.is_uneven for shape in parts.layout.groups):
        fingerprint += "|own sizes"  # once such blocks were padded
    if parts.ranks > 1:
        kind = "stage" if parts.is_stage else "rank"
        fingerprint += f"|{kind} {parts.rank} of {parts.ranks}"
    return fingerprint


def open_store(
    options: EngineOptions,
    fingerprint: bytes,
    form: StateForm,
    parts: LoadedParts,
) -> BlockStore | None:
    """The store on disk; None if its budget does not hold one state of the model.

    None as well for a part of a model with recurrent layers.
    """
    if options.cache_dir is None:
        raise ConfigError('cache = "disk" needs a folder: give cache_dir')
    if parts.ranks > 1 and parts.layout.has_state:
        logger.warning(
            "this model's cache is in memory only: with several ranks the states of "
            "recurrent layers are not kept on disk"
        )
        return None
    needed = HEADER.size + form_bytes(form)
    if form and needed > options.disk_cache_bytes:
        logger.warning(
            "this model's cache is in memory only: a state of its recurrent layers "
            "takes %d bytes on disk, and disk_cache_bytes is %d",
            needed,
            options.disk_cache_bytes,
        )
        return None
    return BlockStore(
        store_folder(Path(options.cache_dir)),
        fingerprint=fingerprint,
        budget_bytes=options.disk_cache_bytes,
        warn=logger.warning,
        name=parts.loaded.name,
    )


def _shown(text: Vocabulary, token: int) -> str:
    """A token's id and its text."""
    piece = text.id_to_bytes(token)
    return f"{token} ({(piece or b'').decode(errors='replace')!r})"
