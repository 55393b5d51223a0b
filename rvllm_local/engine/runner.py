"""Runs the model over sequences' blocks: a chunk of one prompt, or one token of many sequences.

A prefill call only writes KV; the last prompt token is computed by a decode call, so logits are never computed
for tokens that nobody samples from.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np
from mlx import nn

from rvllm_local.attention.backend import KVBackend
from rvllm_local.attention.cpu.two_layer_session import BriefSession, EnoughLayersError
from rvllm_local.attention.geometry import (
    CallGeometry,
    ChunkRows,
    DecodeRow,
    call_geometry,
    filled,
)
from rvllm_local.attention.seam import make_caches, session_caches, state_after
from rvllm_local.engine.compiled import CompiledDecode
from rvllm_local.engine.sampling.host_sampler import draw
from rvllm_local.engine.sampling.sampler import (
    RowSampling,
    SampledTokens,
    SamplingBatch,
    Tokens,
    sample,
)
from rvllm_local.memory.block_io import BlockIO
from rvllm_local.memory.blocks import BLOCK_TOKENS, SCRATCH_BLOCK, BlockTable
from rvllm_local.memory.layout import KVLayout
from rvllm_local.memory.state import RecurrentState, stacked
from rvllm_local.memory.tables import SequenceTables
from rvllm_local.models.adapted import AdapterChoice

_ROW_TILE = 16  # rows that a CPU's matrix product takes at once; a few less take longer than all of them
_MOST_UNTILED = 8  # rows up to which a product is quicker as it is


@dataclass(frozen=True, slots=True)
class RunMode:
    """How a family can be called. `batched`: many rows a decode call, with an array of offsets.

    `dense`: the model does its own attention arithmetic and gets gathered keys and values. In compiled steps `rotates`:
    the kernels rotate queries and keys, and `joins`: additions to the residual stream are launched with the norm after them.
    """

    batched: bool
    dense: bool
    rotates: bool = False
    joins: bool = False


class ModelRunner:
    """Calls the model through the seam. Owns no sequence and no block.

    With `row_group` every shape that the arithmetic sees depends on the sequence alone: prompts go in tiles of one
    block, decode calls have exactly `row_group` rows, and attention goes row by row (the deterministic mode).
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
        self._layout = layout
        self._backend = backend
        self.mode = mode
        self.vocab_size = vocab_size
        self._compiled = compiled
        self._adapters = adapters or AdapterChoice(0)
        self._row_group: int | None = None
        self._draws_on_host = mx.default_device() == mx.Device(mx.cpu)

    def make_deterministic(self, row_group: int) -> None:
        """From now on a sequence's results depend on nothing but itself; decode calls have `row_group` rows."""
        self._row_group = row_group

    @property
    def backend_name(self) -> str:
        return self._backend.name

    @property
    def block_io(self) -> BlockIO:
        """What moves whole blocks between the arenas and the host."""
        return self._backend

    @property
    def num_dispatches(self) -> int:
        return self._backend.num_dispatches

    @property
    def overlaps(self) -> bool:
        """True when a decode step can be launched before the host has read the one before.

        The kernels order what they write by themselves, compiled or not; tokens that the host draws it has to know.
        """
        return self._backend.overlaps and not self._draws_on_host

    @property
    def num_adapters(self) -> int:
        """LoRA adapters that a row may be computed with: numbers from 1 to this one."""
        return self._adapters.count

    def prefill(
        self,
        tables: SequenceTables,
        position: int,
        token_ids: Sequence[int],
        adapter: int = 0,
    ) -> None:
        """Compute the KV of `token_ids`, which stand at `position` and after.

        Only the writes are run: what the model returns is never evaluated.
        """
        self._adapters.choose([adapter])
        end, size = (
            position + len(token_ids),
            len(token_ids) if self._row_group is None else BLOCK_TOKENS,
        )
        for start in range(position, end, size):
            tile = list(token_ids[start - position : start - position + size])
            extra = self._padding(start + len(tile))
            geometry = filled(
                call_geometry(self._layout, [tables], [start], len(tile)), extra
            )
            tile += [0] * extra
            caches = make_caches(
                self._layout,
                self._backend,
                geometry,
                dense=self.mode.dense,
                state=stacked([tables.state]),
            )
            self._model(mx.array([tile]), cache=caches)
            self._keep_state([tables.state], caches)
            self._backend.flush()

    @property
    def prefill_grain(self) -> int:
        """Chunks that end at multiples of so many tokens suit the device; others are filled up."""
        return (
            1
            if self._row_group is not None or self._layout.has_state
            else self._backend.prefill_grain
        )

    def _padding(self, end: int) -> int:
        """Tokens after a chunk that ends at `end`, so that few shapes occur."""
        return -end % self.prefill_grain

    def try_prefill(
        self, tables: SequenceTables, position: int, token_ids: Sequence[int]
    ) -> None:
        """What `prefill` computes, to see what it takes; where layers run one by one, only the first ones."""
        tile = (
            list(token_ids)
            if self._row_group is None
            else list(token_ids[-BLOCK_TOKENS:])
        )
        if not self._runs_by_layer:
            self.prefill(tables, position, token_ids, self.num_adapters)
            return
        self._adapters.choose([self.num_adapters])
        start = position + len(token_ids) - len(tile)
        self._run_briefly(
            call_geometry(self._layout, [tables], [start], len(tile)), mx.array([tile])
        )

    def try_decode(self, rows: Sequence[DecodeRow]) -> None:
        """What `decode` computes, to see what it takes; where layers run one by one, only the first ones."""
        if not self._runs_by_layer:
            mx.eval(self.decode(rows))
            return
        padded, _ = self._groups(rows)[0]
        self._adapters.choose([row.adapter for row in padded])
        self._run_briefly(
            self._geometry(padded), mx.array([[row.token_id] for row in padded])
        )

    @property
    def _runs_by_layer(self) -> bool:
        plain = self.mode == RunMode(batched=True, dense=False)
        return self._backend.runs_by_layer and plain and not self._layout.has_state

    def _run_briefly(self, geometry: CallGeometry, tokens: mx.array) -> None:
        brief = BriefSession(
            self._backend.begin(geometry, by_row=self._row_group is not None),
            len(self._layout.groups),
        )
        offset = (
            int(geometry.positions[0])
            if geometry.rows == 1
            else mx.array(geometry.positions)
        )
        with contextlib.suppress(EnoughLayersError):
            self._model(
                tokens,
                cache=session_caches(
                    self._layout, brief, geometry, dense=False, offset=offset
                ),
            )

    def _keep_state(
        self, states: Sequence[RecurrentState], caches: Sequence[object]
    ) -> None:
        """Hand each row what the recurrent layers keep of it."""
        if not self._layout.has_state:
            return
        batch = state_after(self._layout, caches)
        mx.async_eval([part for part in batch if part is not None])  # type: ignore[no-untyped-call]
        for row, state in enumerate(states):
            state.put(batch, row)

    @property
    def mixes(self) -> bool:
        """True when a decode call can take other rows along: prompt tokens, as on a CPU both stream all weights, so once is
        less; or padding.
        """
        return (
            self._backend.mixes
            and not self._layout.has_state
            and self.mode == RunMode(batched=True, dense=False)
            and self._row_group is None
        )

    def decode_mixed(
        self, rows: Sequence[DecodeRow], chunks: Sequence[ChunkRows]
    ) -> mx.array:
        """Logits `[rows, vocab]` of `rows`; the KV of the chunks' tokens is computed in the same call.

        Rows that nobody reads fill the call up to a size that suits matrix products.
        """
        every = [*rows, *(row for chunk in chunks for row in chunk.rows())]
        every += [self._padding_row(every[0])] * (tiled_rows(len(every)) - len(every))
        self._adapters.choose([row.adapter for row in every])
        geometry = self._geometry(every)
        session = self._backend.begin_mixed(
            geometry,
            self._geometry(rows),
            [
                call_geometry(
                    self._layout, [part.tables], [part.position], len(part.token_ids)
                )
                for part in chunks
            ],
        )
        offset = mx.array(geometry.positions)
        caches = session_caches(
            self._layout, session, geometry, dense=False, offset=offset
        )
        logits: mx.array = self._model(
            mx.array([[row.token_id] for row in every]), cache=caches
        )
        return logits[: len(rows), -1]

    def _geometry(self, rows: Sequence[DecodeRow]) -> CallGeometry:
        return call_geometry(
            self._layout,
            [row.tables for row in rows],
            [row.position for row in rows],
            1,
        )

    def sample(
        self,
        rows: Sequence[DecodeRow],
        samplings: Sequence[RowSampling] | None,
        previous: Tokens | None,
        chunks: Sequence[ChunkRows] = (),
    ) -> SampledTokens:
        """Launch one decode step and the drawing of its tokens; without `samplings` the largest logit is taken.

        `previous` are the tokens of the step before, if that is still in flight. `tokens` of the result may have more entries than there are rows:
        those after the last row mean nothing.
        """
        assert previous is None or isinstance(previous, mx.array), (
            "what the host drew is known to it"
        )
        if self._compiled is not None and samplings is None:
            parts = [
                self._compiled.greedy(group, self._tokens(group, previous), keep)
                for group, keep in self._groups(rows)
            ]
            sampled = SampledTokens(
                parts[0] if len(parts) == 1 else mx.concatenate(parts)
            )
        else:
            logits = (
                self.decode_mixed(rows, chunks)
                if chunks
                else self.decode(rows, previous)
            )
            if self._draws_on_host:
                return _drawn_on_host(logits, samplings)
            if samplings is None:
                sampled = SampledTokens(mx.argmax(logits, axis=-1))
            else:
                sampled = sample(
                    logits, SamplingBatch.build(samplings, self.vocab_size)
                )
        drawn = (
            sampled.tokens,
            sampled.chosen_logprobs,
            sampled.top_ids,
            sampled.top_logprobs,
        )
        mx.async_eval(*[part for part in drawn if part is not None])  # type: ignore[no-untyped-call]
        return sampled

    def decode(
        self, rows: Sequence[DecodeRow], previous: mx.array | None = None
    ) -> mx.array:
        """Logits `[rows, vocab]` of the given tokens, not yet evaluated."""
        if not self.mode.batched:
            parts = [self._decode_call([row], previous) for row in rows]
        elif (
            self._layout.has_state
            and len({row.tables.state.signature for row in rows}) > 1
        ):
            return self._decode_by_signature(rows, previous)
        else:
            parts = [
                self._decode_call(group, previous)[:keep]
                for group, keep in self._groups(rows)
            ]
        return parts[0] if len(parts) == 1 else mx.concatenate(parts, axis=0)

    def _decode_by_signature(
        self, rows: Sequence[DecodeRow], previous: mx.array | None
    ) -> mx.array:
        """Rows whose states cannot be stacked, as at a sequence's first token, go in calls of their own."""
        places: dict[tuple[object, ...], list[int]] = {}
        for place, row in enumerate(rows):
            places.setdefault(row.tables.state.signature, []).append(place)
        parts = [
            self.decode([rows[place] for place in group], previous)
            for group in places.values()
        ]
        order = np.argsort([place for group in places.values() for place in group])
        return mx.concatenate(parts, axis=0)[mx.array(order)]

    def _groups(
        self, rows: Sequence[DecodeRow]
    ) -> list[tuple[Sequence[DecodeRow], int]]:
        """The calls of one step, and how many of each call's rows are real."""
        size = self._row_group
        if size is None:
            return [(rows, len(rows))]
        groups = [rows[start : start + size] for start in range(0, len(rows), size)]
        return [
            (
                [
                    *group,
                    *(self._padding_row(group[0]) for _ in range(size - len(group))),
                ],
                len(group),
            )
            for group in groups
        ]

    def _padding_row(self, like: DecodeRow) -> DecodeRow:
        """A row that reads and writes the scratch block; its recurrent state is thrown away."""
        tables = tuple(BlockTable([SCRATCH_BLOCK]) for _ in self._layout.groups)
        return DecodeRow(
            SequenceTables(
                tables, RecurrentState(like.tables.state.batch, like.tables.state.row)
            ),
            0,
            0,
        )

    def _decode_call(
        self, rows: Sequence[DecodeRow], previous: mx.array | None
    ) -> mx.array:
        if self._compiled is not None:
            return self._compiled.logits(rows, self._tokens(rows, previous))
        if self.mixes and tiled_rows(len(rows)) != len(rows):
            return self.decode_mixed(rows, ())
        self._adapters.choose([row.adapter for row in rows])
        geometry = self._geometry(rows)
        states = [row.tables.state for row in rows] if self._layout.has_state else []
        caches = make_caches(
            self._layout,
            self._backend,
            geometry,
            dense=self.mode.dense,
            by_row=self._row_group is not None,
            state=stacked(states),
        )
        logits: mx.array = self._model(
            self._tokens(rows, previous)[:, None], cache=caches
        )
        self._keep_state(states, caches)
        return logits[:, -1]

    def _tokens(self, rows: Sequence[DecodeRow], previous: mx.array | None) -> mx.array:
        """The rows' tokens, padded to the bucket of a compiled step; those that only the device knows come from `previous`."""
        size = (
            len(rows)
            if self._compiled is None
            else self._compiled.padded_rows(len(rows))
        )
        known = np.zeros(size, dtype=np.int32)
        known[: len(rows)] = [row.token_id for row in rows]
        places = [row.previous_row for row in rows]
        if previous is None or all(place is None for place in places):
            return mx.array(known)
        if previous.shape[0] == size and places == list(range(len(rows))):
            return previous.astype(mx.int32)
        index = np.zeros(size, dtype=np.int32)
        index[: len(rows)] = [place or 0 for place in places]
        is_known = np.ones(size, dtype=np.bool_)
        is_known[: len(rows)] = [place is None for place in places]
        return mx.where(
            mx.array(is_known),
            mx.array(known),
            previous.astype(mx.int32)[mx.array(index)],
        )


def tiled_rows(rows: int) -> int:
    """How many rows a CPU computes at least as quickly as `rows`, and at least that many."""
    return rows if rows <= _MOST_UNTILED else -(-rows // _ROW_TILE) * _ROW_TILE


def _drawn_on_host(
    logits: mx.array, samplings: Sequence[RowSampling] | None
) -> SampledTokens:
    logits = logits.astype(mx.float32)
    mx.eval(logits)
    on_host = np.array(logits, copy=False)
    return (
        SampledTokens(on_host.argmax(axis=-1))
        if samplings is None
        else draw(on_host, samplings)
    )
