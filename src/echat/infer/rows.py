"""Keys and values of many replies in one storage, so that one step of the language model serves them all.

Rows end at the same column and begin where their own length says; what lies before is masked. So a step
appends one column to every row, a row of any length can join at any step, and a row that leaves makes room at
once. Columns that no row needs any more are cut when the storage is next rebuilt.

Legend: n rows, S columns in use, K key/value heads, dim width of the language model.
"""

import torch
from torch import Tensor

from echat.infer.generation import ROOM
from echat.model.llm import KVCache, LanguageModel


class Rows:
    """The storage, and the length of each row. Grows and shrinks with its rows; empty, it holds nothing."""

    def __init__(self, llm: LanguageModel) -> None:
        self._llm = llm
        self._cache: KVCache | None = None  # (layers, slots, K, capacity, head_dim), slots >= n
        self.lens: list[int] = []

    def __len__(self) -> int:
        return len(self.lens)

    @property
    def n_bytes(self) -> int:
        """Room taken."""
        return 0 if self._cache is None else self._cache.keys.nbytes + self._cache.values.nbytes

    @torch.inference_mode()
    def join(self, cache: KVCache) -> None:
        """Add a row at the end: a copy of what `cache` of one row holds."""
        n, length = len(self), cache.length
        if self._cache is None or n == self._cache.keys.shape[1] or length > self._cache.length:
            slots = 1 if n == 0 else self._slots if n < self._slots else 2 * n
            self._rebuild(slots, max([length, *self.lens]))
        assert self._cache is not None
        end = self._cache.length
        for mine, other in ((self._cache.keys, cache.keys), (self._cache.values, cache.values)):
            mine[:, n, :, end - length : end] = other[:, 0, :, :length]
        self.lens.append(length)

    @torch.inference_mode()
    def leave(self, row: int) -> None:
        """Remove a row; the last row takes its number."""
        assert self._cache is not None
        last = len(self) - 1
        if row != last:
            used = slice(self._cache.length - self.lens[last], self._cache.length)
            for storage in (self._cache.keys, self._cache.values):
                storage[:, row, :, used] = storage[:, last, :, used]
        self.lens[row] = self.lens[last]
        self.lens.pop()
        if not self.lens:
            self._cache = None
        elif 4 * len(self) <= self._slots or 2 * (max(self.lens) + ROOM) <= self._cache.keys.shape[3]:
            self._rebuild(min(self._slots, 2 * len(self)), max(self.lens))

    @torch.inference_mode()
    def extend(self, embeds: Tensor) -> Tensor:
        """Read one more position of every row: embeds (n, 1, dim) -> hidden (n, dim)."""
        assert self._cache is not None
        if self._cache.length == self._cache.keys.shape[3]:
            self._rebuild(self._slots, max(self.lens))
        n, total = len(self), self._cache.length + 1
        lens = torch.tensor(self.lens, device=embeds.device)[:, None]
        mask = None
        if min(self.lens) + 1 < total:
            mask = torch.arange(total, device=embeds.device) >= total - 1 - lens  # (n, S)
        cache = KVCache(self._cache.keys[:, :n], self._cache.values[:, :n], self._cache.length)
        hidden, cache = self._llm.extend(embeds, cache, mask, lens)
        self._cache = KVCache(self._cache.keys, self._cache.values, cache.length)
        self.lens = [length + 1 for length in self.lens]
        return hidden[:, -1]

    def row(self, row: int) -> KVCache:
        """What one row holds; a view, valid until the next change."""
        assert self._cache is not None
        end, length = self._cache.length, self.lens[row]
        used = (slice(None), slice(row, row + 1), slice(None), slice(end - length, end))
        return KVCache(self._cache.keys[used], self._cache.values[used], length)

    @property
    def _slots(self) -> int:
        return 0 if self._cache is None else self._cache.keys.shape[1]

    def _rebuild(self, slots: int, end: int) -> None:
        """New storage in which all rows end at column `end`; no row may be longer."""
        new = self._llm.new_cache(slots, end + ROOM)
        if self._cache is not None and self.lens:
            n, width, old_end = len(self), max(self.lens), self._cache.length
            for mine, old in ((new.keys, self._cache.keys), (new.values, self._cache.values)):
                mine[:, :n, :, end - width : end] = old[:, :n, :, old_end - width : old_end]
        self._cache = KVCache(new.keys, new.values, end)
