"""Continuous batching: sequences join and leave the batch at any step; prompts are prefilled in chunks.

Each sequence has its own decoding rules, random generator and length, and its ids do not depend on the rest
of the batch. A round prefills a bounded part of the waiting prompts, then generates one id of every sequence.
Chunks are cut without regard to other prompts, so the arithmetic is that of the sequence alone.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from itertools import islice
from time import perf_counter

import torch
from torch import Tensor

from echat.infer.decoding import GenerationState
from echat.infer.generation import (
    CACHE_HEADROOM,
    PREFILL_CHUNK,
    GenerationStep,
    SequenceState,
    choose_next,
    embed_id,
    prefill_step,
)
from echat.model.llm import KVCache, LanguageModel
from echat.model.speech_llm import SpeechLLM

ROWS = 16


class ContinuousBatch:
    """A batch of sequences for one thread; `scheduler` serves several."""

    def __init__(
        self,
        model: SpeechLLM,
        rows: int = ROWS,
        prefill_chunk: int = PREFILL_CHUNK,
        balance_prefill: bool = False,
    ) -> None:
        """At most `rows` sequences generate at once, the others wait in a queue; prompts are prefilled in
        chunks of `prefill_chunk` positions. `balance_prefill`: a long prompt gets as much time as generation
        beside it, which takes longer in all but does not stall the other replies."""
        if rows < 1 or prefill_chunk < 1:
            raise ValueError(
                f"batch: expected at least one row and position, found {rows} and {prefill_chunk}"
            )
        self.model, self.max_rows, self.prefill_chunk = model, rows, prefill_chunk
        self.balance_prefill = balance_prefill
        self.waiting: deque[SequenceState] = deque()  # prompts not yet prefilled, or in part
        self.sequences: list[SequenceState] = []  # generating, in the order of the rows
        self.kv_cache = BatchedKVCache(model.llm)
        self._hidden: list[Tensor] = []  # (dim,) each: last position of every row
        self._prefill_debt = 0.0  # seconds of prefill not yet matched by generation

    @property
    def is_idle(self) -> bool:
        """Is there nothing to do?"""
        return not self.waiting and not self.sequences

    def add(self, sequence: SequenceState) -> None:
        """Add a sequence to the queue."""
        self.waiting.append(sequence)

    def step(self) -> list[tuple[SequenceState, GenerationStep | None]]:
        """One round: a step of every sequence, and None for a sequence that is over, after its last step."""
        emitted: list[tuple[SequenceState, GenerationStep | None]] = [
            (sequence, None) for sequence in self._remove_finished()
        ]
        self._prefill()
        began = perf_counter()
        if self.sequences:
            emitted += zip(self.sequences, choose_next(self.model, torch.stack(self._hidden), self._states()))
            emitted += [(sequence, None) for sequence in self._remove_finished()]
            self._feed_back()
        self._prefill_debt = (
            max(0.0, self._prefill_debt - (perf_counter() - began)) if self.sequences else 0.0
        )
        return emitted

    def run(self, sequences: Iterable[SequenceState]) -> Iterator[SequenceState]:
        """Generate all of them, taken from `sequences` when a row is free; each is yielded when over."""
        pending = iter(sequences)
        while True:
            free = self.max_rows - len(self.sequences) - len(self.waiting)
            for sequence in islice(pending, free):
                self.add(sequence)
            if self.is_idle:
                return
            yield from [sequence for sequence, step in self.step() if step is None]

    def clear(self) -> list[SequenceState]:
        """Drop everything; returns the sequences that were not over."""
        left = [*self.waiting, *self.sequences]
        self.waiting.clear()
        self.sequences, self._hidden, self.kv_cache = [], [], BatchedKVCache(self.model.llm)
        return left

    def _remove_finished(self) -> list[SequenceState]:
        """Remove finished and cancelled sequences, and free their rows."""
        finished = [sequence for sequence in self.waiting if sequence.is_over]
        for sequence in finished:
            self.waiting.remove(sequence)
            sequence.end(self.model, sequence.cache)
        for row in reversed(range(len(self.sequences))):
            sequence = self.sequences[row]
            if sequence.is_over:
                sequence.end(self.model, self.kv_cache.row(row))
                self.kv_cache.remove_row(row)
                # As the cache does: the last row takes the number of the removed one.
                self.sequences[row], self._hidden[row] = self.sequences[-1], self._hidden[-1]
                self.sequences.pop()
                self._hidden.pop()
                finished.append(sequence)
        return finished

    def _prefill(self) -> None:
        """Prefill chunks of waiting prompts, as far as rows and the budget of this round allow."""
        budget = self.prefill_chunk
        while (
            budget > 0
            and len(self.sequences) < self.max_rows
            and (sequence := self._next_prompt()) is not None
        ):
            self.waiting.remove(sequence)
            is_first, began = sequence.n_prefilled == 0, perf_counter()
            budget -= prefill_step(self.model, sequence, self.prefill_chunk)
            self._prefill_debt += 0.0 if is_first else perf_counter() - began
            if sequence.is_prefilled:
                self._admit(sequence)
            else:
                self.waiting.append(sequence)

    def _next_prompt(self) -> SequenceState | None:
        """The prompt to prefill from: a new one, else the others in turns, unless generation is due."""
        begun = next((sequence for sequence in self.waiting if sequence.n_prefilled == 0), None)
        if begun is not None or (self.balance_prefill and self.sequences and self._prefill_debt > 0):
            return begun
        return self.waiting[0] if self.waiting else None

    def _admit(self, sequence: SequenceState) -> None:
        """Move a prefilled sequence into the batched cache."""
        assert sequence.cache is not None and sequence.hidden is not None
        self.kv_cache.add_row(sequence.cache)
        self.sequences.append(sequence)
        self._hidden.append(sequence.hidden)
        sequence.cache = sequence.hidden = None

    @torch.inference_mode()
    def _feed_back(self) -> None:
        """Extend the cache of every row by its last id."""
        if not self.sequences:
            return
        embeds = [embed_id(self.model, w.ids[-1], w.is_speech[-1]) for w in self._states()]
        self._hidden = list(self.kv_cache.extend(torch.cat(embeds)).unbind())

    def _states(self) -> list[GenerationState]:
        return [sequence.state for sequence in self.sequences]


# --- Keys and values of all sequences in one storage, so that one step of the language model serves them all


class BatchedKVCache:
    """The KV cache of a batch whose rows have different lengths. It grows and shrinks with its rows.

    Rows are right-aligned: they end at the same column, and the columns before a row are masked. So a step
    appends one column to every row, and rows join and leave at any step. Columns that no row needs any more
    are dropped when the storage is next rebuilt.

    Legend: n rows, S columns in use, K key/value heads, dim width of the language model.
    """

    def __init__(self, llm: LanguageModel) -> None:
        self._llm = llm
        self._cache: KVCache | None = None  # (layers, slots, K, capacity, head_dim), slots >= n
        self.lens: list[int] = []

    def __len__(self) -> int:
        return len(self.lens)

    @property
    def n_bytes(self) -> int:
        """Size of the storage."""
        return 0 if self._cache is None else self._cache.keys.nbytes + self._cache.values.nbytes

    @torch.inference_mode()
    def add_row(self, cache: KVCache) -> None:
        """Append a copy of a cache of one row."""
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
    def remove_row(self, row: int) -> None:
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
        elif (
            4 * len(self) <= self._slots or 2 * (max(self.lens) + CACHE_HEADROOM) <= self._cache.keys.shape[3]
        ):
            self._rebuild(min(self._slots, 2 * len(self)), max(self.lens))

    @torch.inference_mode()
    def extend(self, embeds: Tensor) -> Tensor:
        """One step of the language model for every row: embeds (n, 1, dim) -> hidden (n, dim)."""
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
        """The cache of one row; a view, valid until the next change."""
        assert self._cache is not None
        end, length = self._cache.length, self.lens[row]
        used = (slice(None), slice(row, row + 1), slice(None), slice(end - length, end))
        return KVCache(self._cache.keys[used], self._cache.values[used], length)

    @property
    def _slots(self) -> int:
        return 0 if self._cache is None else self._cache.keys.shape[1]

    def _rebuild(self, slots: int, end: int) -> None:
        """New storage in which all rows end at column `end`; no row may be longer."""
        new = self._llm.new_cache(slots, end + CACHE_HEADROOM)
        if self._cache is not None and self.lens:
            n, width, old_end = len(self), max(self.lens), self._cache.length
            for mine, old in ((new.keys, self._cache.keys), (new.values, self._cache.values)):
                mine[:, :n, :, end - width : end] = old[:, :n, :, old_end - width : old_end]
        self._cache = KVCache(new.keys, new.values, end)
