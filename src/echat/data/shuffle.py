"""Shuffling by a keyed permutation of 0..n-1 (Feistel network), computed at any position in constant time.

However large a corpus, its order takes no storage and no start-up time, and resuming needs one number.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

_ROUNDS = 4  # Luby and Rackoff: four rounds of a Feistel network are a strong pseudo-random permutation
_WORD = (1 << 64) - 1


def scramble(value: int) -> int:
    """A 64-bit number that depends on every bit of ``value`` (the finaliser of SplitMix64)."""
    value = (value + 0x9E3779B97F4A7C15) & _WORD
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _WORD
    return value ^ (value >> 31)


@dataclass(frozen=True)
class Permutation:
    """0..size-1 in an order that the key decides: a Feistel network, walked until it lands inside."""

    size: int
    key: int

    @cached_property
    def _half(self) -> int:
        """Bits of each half; the network permutes 4 ** half numbers, fewer than 4 x size."""
        return max(1, ((self.size - 1).bit_length() + 1) // 2)

    @cached_property
    def _keys(self) -> tuple[int, ...]:
        return tuple(scramble(self.key * _ROUNDS + number) for number in range(_ROUNDS))

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, position: int) -> int:
        """The number at a position, 0 <= position < size."""
        if not 0 <= position < self.size:
            raise IndexError(f"expected a position in 0..{self.size - 1}, found {position}")
        value = self._forward(position)
        while value >= self.size:
            value = self._forward(value)
        return value

    def index(self, number: int) -> int:
        """The position of a number."""
        value = self._backward(number)
        while value >= self.size:
            value = self._backward(value)
        return value

    def _forward(self, value: int) -> int:
        half, mask = self._half, (1 << self._half) - 1
        left, right = value >> half, value & mask
        for key in self._keys:
            left, right = right, left ^ (scramble(right ^ key) & mask)
        return left << half | right

    def _backward(self, value: int) -> int:
        half, mask = self._half, (1 << self._half) - 1
        left, right = value >> half, value & mask
        for key in reversed(self._keys):
            left, right = right ^ (scramble(left ^ key) & mask), left
        return left << half | right


@dataclass(frozen=True)
class BlockPermutation:
    """Block shuffling: blocks in random order, then ``window`` blocks at a time shuffled together.

    What a shuffle buffer over shards in random order does, computed at any position: records of at most
    ``window`` blocks are needed at the same time, so a remote shard is fetched once.
    """

    size: int
    key: int
    block: int  # numbers per block, e.g. records per shard
    window: int = 8  # blocks mixed together

    @cached_property
    def _order(self) -> Permutation:
        return Permutation(-(-self.size // self.block), self.key)

    @cached_property
    def _short_slot(self) -> int:
        """Where in the order of blocks the last one lies, the one that may be shorter."""
        return self._order.index(len(self._order) - 1)

    @cached_property
    def _missing(self) -> int:
        """How many numbers the last block lacks."""
        return len(self._order) * self.block - self.size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, position: int) -> int:
        """The number at a position, 0 <= position < size."""
        if not 0 <= position < self.size:
            raise IndexError(f"expected a position in 0..{self.size - 1}, found {position}")
        span = self.block * self.window
        number = self._padded(position, self._short_slot // self.window * span + span) // span
        first, blocks = number * self.window, min(self.window, len(self._order) - number * self.window)
        holds_short = first <= self._short_slot < first + blocks
        start = number * span - (self._missing if number > self._short_slot // self.window else 0)
        mixed = Permutation(blocks * self.block - holds_short * self._missing, scramble(self.key) ^ number)
        inside = mixed[position - start]
        slot, offset = divmod(first * self.block + inside, self.block)
        if holds_short:
            slot, offset = divmod(
                self._padded(first * self.block + inside, (self._short_slot + 1) * self.block), self.block
            )
        return self._order[slot] * self.block + offset

    def _padded(self, position: int, end: int) -> int:
        """``position`` counted as if the short block were whole, where it ended at ``end``."""
        return position + self._missing if position >= end - self._missing else position
