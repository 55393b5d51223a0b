"""The noise that a token is drawn with: a hash of seed, position and token.

Each token waits for an exponentially distributed time, divided by its weight. The
first one to come is drawn, which makes the weights its chances (the Gumbel-max trick,
written with a quotient). So a draw is a function of the weights, the seed and the
position, and two distributions with the same noise mostly give the same token.

The times of a piece of the vocabulary are made from their least one down: it is known
for every piece at little cost, and all others of the piece are later by a time of
their own, since waiting has no memory. So most pieces need not be looked into.

Written once for numpy's arrays and MLX's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

PIECE = 256  # tokens

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]

_MASK64 = 2**64 - 1
_GOLDEN64 = 0x9E3779B97F4A7C15
_MANY = 256  # tokens: less is quicker made than left out
_BITS = 23  # of a uniform number: all of (i + 1/2) / 2**23 are exact in float32


class NoiseKey(NamedTuple):
    """Two halves of 32 bits, from a seed and a position."""

    first: int
    second: int


def noise_key(seed: int, position: int) -> NoiseKey:
    """The key of a position, as SplitMix64 hashes (Steele, Lea, Flood 2014)."""
    state = _mix((seed + _GOLDEN64 * (position + 1)) & _MASK64)
    mixed = _mix(state ^ (seed & _MASK64))
    return NoiseKey(mixed & 0xFFFFFFFF, mixed >> 32)


def _mix(value: int) -> int:
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK64
    return value ^ (value >> 31)


def piece_sizes(vocab_size: int) -> npt.NDArray[np.uint32]:
    """Tokens of each piece: the last one may be smaller."""
    count = -(-vocab_size // PIECE)
    sizes = np.full(count, PIECE, dtype=np.uint32)
    sizes[-1] = vocab_size - (count - 1) * PIECE
    return sizes


class Words:
    """The numbers that the noise is made with, as scalars of one array module."""

    def __init__(self, xp: Any) -> None:
        self.xp = xp
        self.golden = _word(xp, 0x9E3779B9)
        self.first_factor = _word(xp, 0x21F0AAAD)
        self.second_factor = _word(xp, 0xD35A2D97)
        self.half_word = _word(xp, 16)
        self.near_half = _word(xp, 15)
        self.dropped = _word(xp, 32 - _BITS)
        self.one = _word(xp, 1)
        self.two = _word(xp, 2)
        self.piece = _word(xp, PIECE)
        self.pieces = _word(xp, 0x80000000)  # hashed for pieces, not for tokens
        self.half = xp.array(0.5, dtype=xp.float32)
        self.scale = xp.array(2.0**-_BITS, dtype=xp.float32)


def _word(xp: Any, value: int) -> Any:
    return xp.array(value, dtype=xp.uint32)


_HOST_WORDS = Words(np)


def piece_noise(
    words: Words,
    first: Any,
    second: Any,
    pieces: Any,
    sizes: Any,
) -> tuple[Any, Any]:
    """The least time of each piece, and the token within the piece that has it.

    All but `words` are uint32 and broadcast: the halves of keys, numbers of pieces, and
    their sizes.
    """
    numbers = pieces * words.two + words.pieces
    hashed = _hash(words, numbers, first, second)
    least = _times(words, hashed) / sizes.astype(words.xp.float32)
    hashed = _hash(words, numbers + words.one, first, second)
    return least, hashed % sizes


def token_noise(
    words: Words,
    first: Any,
    second: Any,
    tokens: Any,
    least: Any,
    least_token: Any,
) -> Any:
    """The time of each token, given its piece's least time and the token of that.

    `tokens` are uint32, as are the halves of keys; `least_token` counts within a piece.
    """
    times = _times(words, _hash(words, tokens, first, second))
    times *= tokens % words.piece != least_token
    times += least
    return times


def _times(words: Words, hashed: Any) -> Any:
    """Exponentially distributed times, of some random bits each, between 6e-8 and 17.

    A logarithm near zero may be rough: what is rare comes from a piece's least time.
    """
    times = (hashed >> words.dropped).astype(words.xp.float32)
    times += words.half
    times *= words.scale
    return -words.xp.log(times)


def _hash(words: Words, numbers: Any, first: Any, second: Any) -> Any:
    """Wellons' lowbias32, with one half of the key before it and one within."""
    mixed = numbers * words.golden
    mixed = mixed + first
    mixed ^= mixed >> words.half_word
    mixed *= words.first_factor
    mixed ^= second
    mixed ^= mixed >> words.near_half
    mixed *= words.second_factor
    mixed ^= mixed >> words.near_half
    return mixed


class NoiseRow:
    """The noise of one position, as numpy's."""

    def __init__(
        self,
        key: NoiseKey,
        least: FloatArray,
        least_tokens: npt.NDArray[np.uint32],
    ) -> None:
        """`least` and `least_tokens` are what `piece_noise` returns."""
        self._first = np.uint32(key.first)
        self._second = np.uint32(key.second)
        self._least = least
        self._least_tokens = least_tokens

    def first_of(self, tokens: IntArray, weights: FloatArray) -> tuple[int, float]:
        """The token of these that comes first, and its weight over its time."""
        pieces = tokens // PIECE
        least = self._least[pieces]
        if len(tokens) > _MANY:
            # One that the heaviest precedes, even at its piece's least time, is not it.
            heaviest = int(weights.argmax())
            alone = slice(heaviest, heaviest + 1)
            _, speed = self.first_of(tokens[alone], weights[alone])
            maybe = np.flatnonzero(weights >= speed * least)
            return self._first_of(
                tokens[maybe], weights[maybe], pieces[maybe], least[maybe]
            )
        return self._first_of(tokens, weights, pieces, least)

    def _first_of(
        self,
        tokens: IntArray,
        weights: FloatArray,
        pieces: IntArray,
        least: FloatArray,
    ) -> tuple[int, float]:
        times = token_noise(
            _HOST_WORDS,
            self._first,
            self._second,
            tokens.astype(np.uint32),
            least,
            self._least_tokens[pieces],
        )
        speeds = weights / times
        index = int(speeds.argmax())
        return int(tokens[index]), float(speeds[index])

    def first(
        self,
        logits: FloatArray,
        best: int,
        temperature: float,
    ) -> int:
        """The first of all tokens; `best` is the one of the largest logit.

        A token is looked at if it came before the quickest of a few, were its time the
        least of its piece.
        """
        scale = np.float32(1 / temperature)
        largest = logits[best]
        starts = np.arange(len(self._least)) * PIECE
        quotients = np.exp((logits[starts + self._least_tokens] - largest) * scale)
        quotients /= self._least
        only = np.array([best])
        _, speed = self.first_of(only, np.ones(1, dtype=np.float32))
        speed = max(speed, float(quotients.max()))
        edges = np.log(self._least * np.float32(speed)) / scale
        # A rounding must not lose the quickest itself.
        edges -= np.float32(1e-5) * (1 + np.abs(edges))
        edges += largest
        tokens = self._above(logits, edges)
        weights = np.exp((logits[tokens] - largest) * scale)
        return self._first_of(
            tokens,
            weights,
            tokens // PIECE,
            self._least[tokens // PIECE],
        )[0]

    def _above(self, logits: FloatArray, edges: FloatArray) -> IntArray:
        """The tokens whose logit is not below the edge of their piece."""
        num_whole = len(logits) // PIECE
        whole = logits[: num_whole * PIECE].reshape(num_whole, PIECE)
        tokens = np.flatnonzero(whole >= edges[:num_whole, None])
        if num_whole == len(edges):
            return tokens
        rest = np.flatnonzero(logits[num_whole * PIECE :] >= edges[-1])
        return np.concatenate([tokens, rest + num_whole * PIECE])


class HostNoise:
    """The noise of some rows, each a seed and a position, in a vocabulary.

    It is made for all rows together, when a row first asks for its own.
    """

    def __init__(self, rows: Sequence[tuple[int, int]], vocab_size: int) -> None:
        self._rows = rows
        self._vocab_size = vocab_size
        self._made: list[NoiseRow] = []

    def row(self, index: int) -> NoiseRow:
        if not self._made:
            self._make()
        return self._made[index]

    def _make(self) -> None:
        keys = [noise_key(seed, position) for seed, position in self._rows]
        halves = np.array(keys, dtype=np.uint32)
        sizes = piece_sizes(self._vocab_size)
        pieces = np.arange(len(sizes), dtype=np.uint32)
        least, least_tokens = piece_noise(
            _HOST_WORDS, halves[:, :1], halves[:, 1:], pieces, sizes
        )
        for index, key in enumerate(keys):
            self._made.append(NoiseRow(key, least[index], least_tokens[index]))
