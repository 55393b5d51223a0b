"""One sequence in the engine: its tokens, how many of them have KV, its blocks and its output side."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from rvllm_local.engine.detokenizer import StreamingDetokenizer
from rvllm_local.memory.tables import SequenceTables
from rvllm_local.types import Request, StreamEvent

EventSink = Callable[[StreamEvent], None]


@dataclass(slots=True, eq=False)
class Sequence:
    """`token_ids` is prompt plus output; the first `num_computed` of them are in the arenas.

    A sequence decodes when all but its last token are computed; before that it prefills.
    """

    request: Request
    max_total: int  # tokens, prompt and output, at which it ends for length
    tables: SequenceTables
    detokenizer: StreamingDetokenizer
    sink: EventSink
    token_ids: list[int] = field(init=False)
    num_computed: int = 0
    cached_tokens: int = 0

    def __post_init__(self) -> None:
        self.token_ids = list(self.request.prompt_token_ids)

    @property
    def num_prompt(self) -> int:
        return len(self.request.prompt_token_ids)

    @property
    def output_token_ids(self) -> list[int]:
        return self.token_ids[self.num_prompt :]

    @property
    def is_decoding(self) -> bool:
        return self.num_computed == len(self.token_ids) - 1

    @property
    def num_to_prefill(self) -> int:
        """Tokens to compute before the last one, which is computed by a decode step."""
        return len(self.token_ids) - 1 - self.num_computed
