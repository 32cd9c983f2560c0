"""Many replies side by side: new ones join and finished ones leave at any step.

Each reply has its own plan, its own chance and its own length; what it writes does not depend on who else is
written. A round reads a bounded part of the prompts that wait, then writes one id of every reply. Prompts are
read in turns, in parts that are cut without regard to the others: the arithmetic is the same in any company.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from itertools import islice
from time import perf_counter

import torch
from torch import Tensor

from echat.infer.decoding import Writing
from echat.infer.generation import READ_CHUNK, Step, Strand, embed_id, read, write_next
from echat.infer.rows import Rows
from echat.model.speech_llm import SpeechLLM

ROWS = 16


class Batch:
    """The replies of one loop. Not for several threads: see `scheduler` for that."""

    def __init__(
        self, model: SpeechLLM, rows: int = ROWS, read_chunk: int = READ_CHUNK, shares_time: bool = False
    ) -> None:
        """At most `rows` are written at once, the others wait in line; prompts are read `read_chunk`
        positions at a time. `shares_time`: a long prompt is read no longer than is written beside it; that
        takes longer in all, but nobody waits for a stranger's prompt."""
        if rows < 1 or read_chunk < 1:
            raise ValueError(f"batch: expected at least one row and position, found {rows} and {read_chunk}")
        self.model, self.max_rows, self.read_chunk = model, rows, read_chunk
        self.shares_time = shares_time
        self.line: deque[Strand] = deque()  # prompts not yet read, or in part
        self.strands: list[Strand] = []  # being written, as the rows of the storage
        self.rows = Rows(model.llm)
        self._hidden: list[Tensor] = []  # (dim,) each: last position of every row
        self._owed = 0.0  # seconds of reading that writing is still to have

    @property
    def is_idle(self) -> bool:
        """Is there nothing to do?"""
        return not self.line and not self.strands

    def add(self, strand: Strand) -> None:
        """Put a reply in line."""
        self.line.append(strand)

    def step(self) -> list[tuple[Strand, Step | None]]:
        """One round: what was written, and without a step whatever is over, after its last step."""
        told: list[tuple[Strand, Step | None]] = [(strand, None) for strand in self._drop()]
        self._read()
        began = perf_counter()
        if self.strands:
            told += zip(self.strands, write_next(self.model, torch.stack(self._hidden), self._writings()))
            told += [(strand, None) for strand in self._drop()]
            self._extend()
        self._owed = max(0.0, self._owed - (perf_counter() - began)) if self.strands else 0.0
        return told

    def run(self, strands: Iterable[Strand]) -> Iterator[Strand]:
        """Write all of them, taking from `strands` only when there is room; each as soon as it is over."""
        waiting = iter(strands)
        while True:
            free = self.max_rows - len(self.strands) - len(self.line)
            for strand in islice(waiting, free):
                self.add(strand)
            if self.is_idle:
                return
            yield from [strand for strand, step in self.step() if step is None]

    def clear(self) -> list[Strand]:
        """Give up everything; what was under way."""
        left = [*self.line, *self.strands]
        self.line.clear()
        self.strands, self._hidden, self.rows = [], [], Rows(self.model.llm)
        return left

    def _drop(self) -> list[Strand]:
        """Take out what is finished or cancelled, and free its memory."""
        over = [strand for strand in self.line if strand.is_over]
        for strand in over:
            self.line.remove(strand)
            strand.end(self.model, strand.cache)
        for row in reversed(range(len(self.strands))):
            strand = self.strands[row]
            if strand.is_over:
                strand.end(self.model, self.rows.row(row))
                self.rows.leave(row)
                self.strands[row], self._hidden[row] = self.strands[-1], self._hidden[-1]  # as the rows do
                self.strands.pop()
                self._hidden.pop()
                over.append(strand)
        return over

    def _read(self) -> None:
        """Read parts of prompts, as far as there are rows and positions left."""
        budget = self.read_chunk
        while budget > 0 and len(self.strands) < self.max_rows and (strand := self._next()) is not None:
            self.line.remove(strand)
            is_first, began = strand.n_read == 0, perf_counter()
            budget -= read(self.model, strand, self.read_chunk)
            self._owed += 0.0 if is_first else perf_counter() - began
            if strand.is_read:
                self._join(strand)
            else:
                self.line.append(strand)

    def _next(self) -> Strand | None:
        """The prompt to read from: one that nothing was read of, else the others in turns, if it is not the
        turn of writing."""
        begun = next((strand for strand in self.line if strand.n_read == 0), None)
        if begun is not None or (self.shares_time and self.strands and self._owed > 0):
            return begun
        return self.line[0] if self.line else None

    def _join(self, strand: Strand) -> None:
        """The prompt is read: from here on the shared storage holds it."""
        assert strand.cache is not None and strand.hidden is not None
        self.rows.join(strand.cache)
        self.strands.append(strand)
        self._hidden.append(strand.hidden)
        strand.cache = strand.hidden = None

    @torch.inference_mode()
    def _extend(self) -> None:
        """Read what every row has just written."""
        if not self.strands:
            return
        embeds = [embed_id(self.model, w.ids[-1], w.is_speech[-1]) for w in self._writings()]
        self._hidden = list(self.rows.extend(torch.cat(embeds)).unbind())

    def _writings(self) -> list[Writing]:
        return [strand.writing for strand in self.strands]
