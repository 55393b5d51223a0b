"""What crosses between rank 0 and another rank: typed frames of bounded length.

A call names blocks and tokens only. All ranks make the same calls in the same order.
"""

from __future__ import annotations

import msgspec

from rvllm_local.options import Backend, EngineOptions, RdmaDevices

RANK_LOST = 71  # rank 0's exit status where another rank is at fault
MAX_FRAME = 16 * 2**20  # bytes; the block tables of a full batch take less


class Frame(msgspec.Struct, tag=True, frozen=True):
    """What is sent by itself; its class's name goes along."""


class Part(msgspec.Struct, array_like=True, frozen=True):
    """What is sent within a frame; its fields' names stay here."""


class Hello(Frame, frozen=True):
    """A rank that has proven itself: its process, and what it is made of.

    `ranks` is how many it takes the job to have.
    """

    pid: int
    versions: dict[str, str]
    ranks: int


class Meeting(Part, frozen=True):
    """How the ranks form MLX's group: by which back end, and where each listens.

    Only the ring uses the addresses of all; the others meet at rank 0's.
    """

    backend: Backend
    addresses: tuple[str, ...]
    devices: RdmaDevices = ()


class Job(Frame, frozen=True):
    """What all ranks shall serve, and how they meet.

    `pid` is rank 0's on this machine, 0 on others. Without `options` the ranks only
    measure how they reach each other.
    """

    pid: int
    meeting: Meeting
    options: EngineOptions | None


class Joined(Frame, frozen=True):
    """The rank has the model of this mark, and memory for its part."""

    model_mark: str


class Go(Frame, frozen=True):
    """All ranks are there: form the group, and load."""


class Ready(Frame, frozen=True):
    """The rank's part is loaded: blocks of each group's arena, and how it is called."""

    num_blocks: tuple[int, ...]
    mode: str


class Serving(Frame, frozen=True):
    """All parts are loaded. From now on silence means that a rank hangs."""


class Failed(Frame, frozen=True):
    """The rank cannot go on: an error's class name and its text."""

    kind: str
    message: str


class Beat(Frame, frozen=True):
    """A sign of life."""


class RollCall(Frame, frozen=True):
    """Is the rank there? It answers `Present` with this number at once."""

    number: int


class Present(Frame, frozen=True):
    """The rank is there, or was when it had read the call of this number."""

    number: int


class Close(Frame, frozen=True):
    """The job is over."""


class Table(Part, frozen=True):
    """The blocks of one sequence in one group."""

    start_block: int
    block_ids: list[int]


class Chunk(Part, frozen=True):
    """Tokens of one sequence, which stand at `position` and after.

    `state` is the number of what the recurrent layers keep of the sequence, `adapter`
    that of its adapter; 0 for none.
    """

    tables: tuple[Table, ...]
    state: int
    position: int
    token_ids: tuple[int, ...]
    adapter: int


class Prefill(Frame, frozen=True):
    """Compute the KV of a chunk."""

    chunk: Chunk


class Score(Frame, frozen=True):
    """As `Prefill`; the tokens' log-probabilities are computed as well."""

    chunk: Chunk
    targets: tuple[int, ...]
    num_top: int


class Decode(Frame, frozen=True):
    """Compute the logits after one token of each row; `chunks` go along."""

    rows: tuple[Chunk, ...]
    chunks: tuple[Chunk, ...]


class CopyBlocks(Frame, frozen=True):
    """Copy blocks of a group, `(source, destination)` each."""

    group: int
    pairs: tuple[tuple[int, int], ...]


class SwapOut(Frame, frozen=True):
    """Keep the content of a sequence's blocks, by group, until `SwapForget`.

    Its state is kept as well.
    """

    sequence: int
    state: int
    block_ids: tuple[list[int], ...]


class SwapIn(Frame, frozen=True):
    """Write what was kept of a sequence into these blocks, and into its state."""

    sequence: int
    state: int
    block_ids: tuple[list[int], ...]


class SwapForget(Frame, frozen=True):
    """Drop what was kept of a sequence."""

    sequence: int


class SpillBlock(Frame, frozen=True):
    """Write a block of a group to disk, under this key."""

    group: int
    block_id: int
    key: bytes


class RestoreBlock(Frame, frozen=True):
    """Read a block of a group from disk. `Verdict` says whether that went well."""

    group: int
    block_id: int
    key: bytes


class Verdict(Frame, frozen=True):
    """Whether the rank has done what it was asked last."""

    is_done: bool


class StateFork(Frame, frozen=True):
    """A new state begins as another one is."""

    source: int
    fork: int


class StateClear(Frame, frozen=True):
    """Forget a state."""

    state: int


class StateResume(Frame, frozen=True):
    """Give a sequence the snapshot of this key."""

    state: int
    key: bytes


class SnapshotKeep(Frame, frozen=True):
    """Take a snapshot of a state."""

    key: bytes
    state: int


class SnapshotDrop(Frame, frozen=True):
    """Forget a snapshot."""

    key: bytes


StateChange = StateFork | StateClear | StateResume | SnapshotKeep | SnapshotDrop
Swap = SwapOut | SwapIn | SwapForget
Disk = SpillBlock | RestoreBlock
Call = Prefill | Score | Decode | CopyBlocks | Swap | Disk | StateChange
FromLeader = Job | Go | Serving | Beat | RollCall | Close | Failed | Call
FromRank = Hello | Joined | Ready | Verdict | Present | Failed | Beat

FROM_LEADER: msgspec.msgpack.Decoder[FromLeader] = msgspec.msgpack.Decoder(FromLeader)
FROM_RANK: msgspec.msgpack.Decoder[FromRank] = msgspec.msgpack.Decoder(FromRank)
