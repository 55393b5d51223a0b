"""Runs the model over sequences' blocks: a chunk of a prompt, or a token of many rows.

A prefill call only writes KV; only a scored prompt needs the logits of every token. A
prompt's last token goes through a decode call: nobody samples from the others.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import mlx.core as mx
import numpy as np
import numpy.typing as npt
from mlx import nn

from rvllm_local.attention.backend import KVBackend
from rvllm_local.attention.cpu.two_layer_session import BriefSession, EnoughLayersError
from rvllm_local.attention.geometry import (
    CallGeometry,
    DecodeRow,
    TokenChunk,
    chunk_geometry,
    filled,
    rows_geometry,
)
from rvllm_local.attention.in_order import takes_in_order, token_depths
from rvllm_local.attention.seam import (
    first_offset,
    make_caches,
    session_caches,
)
from rvllm_local.engine.call_hook import (
    CallHook,
    PrefillCall,
    ScoreCall,
    StepCall,
    around,
)
from rvllm_local.engine.compiled import CompiledDecode
from rvllm_local.engine.decode_batch import (
    begin_states,
    joined,
    keep_states,
    padding_row,
    row_groups,
    rows_by_state,
    step_tokens,
    tiled_rows,
)
from rvllm_local.engine.run_mode import RunMode
from rvllm_local.engine.sampling.host_sampler import draw_on_host
from rvllm_local.engine.sampling.logprobs import TargetLogprobs, target_logprobs
from rvllm_local.engine.sampling.sampler import (
    RowSampling,
    SampledTokens,
    Tokens,
    sample_rows,
)
from rvllm_local.memory.block_io import BlockIO
from rvllm_local.memory.blocks import BLOCK_TOKENS
from rvllm_local.memory.layout import KVLayout
from rvllm_local.memory.state import stacked
from rvllm_local.models.adapted import AdapterChoice

_SCORED_LOGITS = 2 * 2**20  # logits of prompt tokens that are there at once
_PLAIN_BATCHES = RunMode(batched=True, dense=False)


class ModelRunner:
    """Calls the model through the seam. Owns no sequence and no block.

    With `row_group` every shape that the arithmetic sees depends on the sequence alone:
    prompts go in tiles of one block, decode calls have exactly `row_group` rows, and
    attention goes row by row (the deterministic mode). Without `pads_groups` a call may
    have fewer rows: their number changes no bit.

    `hook` is there at each `prefill`, `score` and `sample`.
    """

    def __init__(
        self,
        model: nn.Module,
        layout: KVLayout,
        backend: KVBackend,
        mode: RunMode,
        vocab_size: int,
        compiled: CompiledDecode | None = None,
        adapters: AdapterChoice | None = None,
    ) -> None:
        self._model = model
        self.layout = layout
        self._backend = backend
        self.mode = mode
        self.vocab_size = vocab_size
        self._compiled = compiled
        self._adapters = adapters or AdapterChoice(0)
        self.hook: CallHook | None = None
        self.row_group: int | None = None
        self.pads_groups = True
        self.weight_form = "as stored"  # for people
        self._takes_in_order = takes_in_order(model, layout)
        self._draws_on_host = mx.default_device() == mx.Device(mx.cpu)

    def make_deterministic(self, row_group: int, *, pads: bool = True) -> None:
        """From now on a sequence's results depend on nothing but itself."""
        self.row_group = row_group
        self.pads_groups = pads

    @property
    def backend_name(self) -> str:
        return self._backend.name

    @property
    def block_io(self) -> BlockIO:
        """Moves whole blocks between the arenas and the host."""
        return self._backend

    @property
    def num_dispatches(self) -> int:
        return self._backend.num_dispatches

    @property
    def overlaps(self) -> bool:
        """A decode step can be launched before the host has read the one before.

        Tokens that the host draws it has to know first.
        """
        if self.hook is not None and not self.hook.overlaps:
            return False
        return self._backend.overlaps and not self._draws_on_host

    @property
    def verifies(self) -> bool:
        """A call can take several tokens of a sequence; see `KVBackend.verifies`."""
        takes_rows = self._backend.verifies and self.mode.batched
        return takes_rows and self._takes_in_order

    @property
    def mixes(self) -> bool:
        """A decode call can take prompt tokens along, or padding."""
        return self._backend.mixes and self._is_plain_batch and self.row_group is None

    @property
    def _is_plain_batch(self) -> bool:
        return self.mode == _PLAIN_BATCHES and not self.layout.has_state

    @property
    def num_adapters(self) -> int:
        """A row may be computed with the LoRA adapters from 1 to this number."""
        return self._adapters.count

    @property
    def prefill_grain(self) -> int:
        """Chunks should end at multiples of so many tokens; others are filled up."""
        if self.row_group is not None or self.layout.has_state:
            return 1
        return self._backend.prefill_grain

    def prefill(self, chunk: TokenChunk) -> None:
        """Compute the KV of a chunk.

        Only the writes are run: what the model returns is never evaluated.
        """
        num_tokens = len(chunk.token_ids)
        size = num_tokens if self.row_group is None else BLOCK_TOKENS
        with around(self.hook, PrefillCall(chunk)):
            self._adapters.choose([chunk.adapter])
            for start in range(0, num_tokens, size):
                self._prefill_call(chunk.tile(start, size))

    def score(
        self, chunk: TokenChunk, targets: Sequence[int], num_top: int
    ) -> list[TargetLogprobs]:
        """As `prefill`; also how likely each of `targets` is, the token after each.

        Goes in tiles, so that the logits of a tile fit into the planned scratch.
        """
        size = self.score_tile
        parts = []
        with around(self.hook, ScoreCall(chunk, targets, num_top)):
            self._adapters.choose([chunk.adapter])
            for start in range(0, len(chunk.token_ids), size):
                logits = self._prefill_call(chunk.tile(start, size))
                tile_targets = targets[start : start + size]
                parts.append(target_logprobs(logits, tile_targets, num_top))
        return parts

    @property
    def score_tile(self) -> int:
        """Tokens of a prompt whose logits are there at once."""
        if self.row_group is not None:
            return BLOCK_TOKENS
        num_blocks = _SCORED_LOGITS // self.vocab_size // BLOCK_TOKENS
        return max(1, num_blocks) * BLOCK_TOKENS

    def _prefill_call(self, tile: TokenChunk) -> mx.array:
        """Write a tile's KV. Returns its logits `[tokens, vocab]`, not evaluated."""
        token_ids = tile.token_ids
        state = tile.tables.state
        end = tile.position + len(token_ids)
        extra = -end % self.prefill_grain  # tokens that nobody wants: few shapes occur
        geometry = chunk_geometry(self.layout, tile)
        caches = make_caches(
            self.layout,
            self._backend,
            filled(geometry, extra),
            dense=self.mode.dense,
            state=stacked([state]),
        )
        tokens = mx.array([[*token_ids, *([0] * extra)]])
        logits: mx.array = self._model(tokens, cache=caches)
        keep_states(self.layout, [state], caches)
        self._backend.flush()
        return logits[0, : len(token_ids)]

    @property
    def runs_by_layer(self) -> bool:
        """Layers are computed one by one: the first ones show what all take."""
        return self._backend.runs_by_layer and self._is_plain_batch

    def run_few_layers(
        self, geometry: CallGeometry, tokens: mx.array, adapters: Sequence[int]
    ) -> None:
        """Compute the first layers of a call, to see what it takes."""
        self._adapters.choose(adapters)
        whole = self._backend.begin(geometry, by_row=self.row_group is not None)
        session = BriefSession(whole, len(self.layout.groups))
        offset = first_offset(geometry)
        caches = session_caches(
            self.layout, session, geometry, dense=False, offset=offset
        )
        with contextlib.suppress(EnoughLayersError):
            self._model(tokens, cache=caches)

    def _decode_mixed(
        self, rows: Sequence[DecodeRow], chunks: Sequence[TokenChunk]
    ) -> mx.array:
        """Logits `[rows, vocab]` of `rows`. The same call computes the chunks' KV.

        Rows that nobody reads fill the call up to a size that suits matrix products.
        """
        all_rows = list(rows)
        for chunk in chunks:
            all_rows += chunk.rows()
        num_missing = tiled_rows(len(all_rows)) - len(all_rows)
        all_rows += [padding_row(self.layout, all_rows[0])] * num_missing
        self._adapters.choose([row.adapter for row in all_rows])
        geometry = rows_geometry(self.layout, all_rows)
        session = self._backend.begin_mixed(
            geometry,
            rows_geometry(self.layout, rows),
            [chunk_geometry(self.layout, chunk) for chunk in chunks],
        )
        offset = mx.array(geometry.positions)
        caches = session_caches(
            self.layout, session, geometry, dense=False, offset=offset
        )
        tokens = mx.array([[row.token_id] for row in all_rows])
        logits: mx.array = self._model(tokens, cache=caches)
        return logits[: len(rows), -1]

    def sample(
        self,
        rows: Sequence[DecodeRow],
        samplings: Sequence[RowSampling] | None,
        previous: Tokens | None,
        chunks: Sequence[TokenChunk] = (),
    ) -> SampledTokens:
        """Launch one decode step and the drawing of its tokens.

        Without `samplings` the largest logit is taken. `previous` are the tokens of the
        step before, if that is still in flight. `tokens` of the result may have more
        entries than there are rows: those after the last row mean nothing.
        """
        assert previous is None or isinstance(previous, mx.array), (
            "what the host drew is known to it"
        )
        with around(self.hook, StepCall(rows, chunks)):
            compiled = self._compiled_for(rows)
            if compiled is not None and samplings is None:
                sampled = self._compiled_greedy(compiled, rows, previous)
            elif self._draws_on_host:
                return draw_on_host(self._host_logits(rows, chunks), samplings)
            else:
                logits = self.decode(rows, previous, chunks)
                sampled = sample_rows(logits, samplings)
            evaluate = mx.async_eval if self.overlaps else mx.eval
            evaluate(*sampled.arrays())
            if compiled is not None:
                compiled.prepare()
        return sampled

    def _host_logits(
        self, rows: Sequence[DecodeRow], chunks: Sequence[TokenChunk]
    ) -> npt.NDArray[np.float32]:
        """As `decode`, to draw on the host: float32, evaluated."""
        logits = self.decode(rows, None, chunks).astype(mx.float32)
        mx.eval(logits)
        return np.array(logits, copy=False)

    def _compiled_for(self, rows: Sequence[DecodeRow]) -> CompiledDecode | None:
        """The compiled step, if there is one that takes these rows."""
        if self._compiled is None or not self._compiled.takes(rows):
            return None
        return self._compiled

    def _compiled_greedy(
        self,
        compiled: CompiledDecode,
        rows: Sequence[DecodeRow],
        previous: mx.array | None,
    ) -> SampledTokens:
        parts = []
        for group, num_real in self._groups(rows):
            tokens = self._tokens(group, previous)
            parts.append(compiled.greedy(group, tokens, num_real))
        return SampledTokens(joined(parts))

    def _groups(
        self, rows: Sequence[DecodeRow]
    ) -> list[tuple[Sequence[DecodeRow], int]]:
        return row_groups(self.layout, rows, self.row_group, pads=self.pads_groups)

    def decode(
        self,
        rows: Sequence[DecodeRow],
        previous: mx.array | None = None,
        chunks: Sequence[TokenChunk] = (),
    ) -> mx.array:
        """Logits `[rows, vocab]` of the given tokens, not yet evaluated."""
        if chunks:
            return self._decode_mixed(rows, chunks)
        if not self.mode.batched:
            return joined([self._decode_call([row], previous) for row in rows])
        if self.layout.has_state:
            begin_states(rows)
            groups = rows_by_state(rows)
            if len(groups) > 1:  # as at a sequence's first token
                return self._decode_by_state(rows, groups, previous)
        parts = []
        for group, num_real in self._groups(rows):
            logits = self._decode_call(group, previous)[:num_real]
            if self.runs_by_layer:
                mx.eval(logits)  # what this call gathered is free before the next one
            parts.append(logits)
        return joined(parts)

    def _decode_by_state(
        self,
        rows: Sequence[DecodeRow],
        groups: list[list[int]],
        previous: mx.array | None,
    ) -> mx.array:
        """A call for each kind of state; the logits are in the order of `rows`."""
        parts = []
        computed: list[int] = []  # the rows' indices, as the parts have them
        for group in groups:
            group_rows = [rows[index] for index in group]
            parts.append(self.decode(group_rows, previous))
            computed += group
        order = mx.array(np.argsort(computed))
        return mx.concatenate(parts, axis=0)[order]

    def _decode_call(
        self, rows: Sequence[DecodeRow], previous: mx.array | None
    ) -> mx.array:
        compiled = self._compiled_for(rows)
        if compiled is not None:
            return compiled.logits(rows, self._tokens(rows, previous))
        if self.mixes and tiled_rows(len(rows)) != len(rows):
            return self._decode_mixed(rows, ())
        self._adapters.choose([row.adapter for row in rows])
        geometry = rows_geometry(self.layout, rows)
        states = []
        depths = None
        if self.layout.has_state:
            states = [row.tables.state for row in rows]
            depths = token_depths(rows)
        caches = make_caches(
            self.layout,
            self._backend,
            geometry,
            dense=self.mode.dense,
            by_row=self.row_group is not None,
            state=stacked(states),
            depths=depths,
        )
        tokens = self._tokens(rows, previous)[:, None]
        logits: mx.array = self._model(tokens, cache=caches)
        keep_states(self.layout, states, caches)
        return logits[:, -1]

    def _tokens(self, rows: Sequence[DecodeRow], previous: mx.array | None) -> mx.array:
        """The rows' tokens, padded to the bucket of a compiled step."""
        size = len(rows)
        compiled = self._compiled_for(rows)
        if compiled is not None:
            size = compiled.padded_rows(size)
        return step_tokens(rows, previous, size)
