"""A ticket becomes examples: the one border where a bad record is caught, named and left out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from echat.data.defects import Defect, defect_of
from echat.data.stream import Draw, Pair, Ticket

E = TypeVar("E")


@dataclass(frozen=True, slots=True)
class Outcome(Generic[E]):
    """What a ticket gave: its examples, several where each turn is one, and what is wrong with others."""

    examples: tuple[E, ...]
    defects: tuple[Defect, ...] = ()


@dataclass(frozen=True)
class Reader(Generic[E]):
    """Reads a ticket's record and builds it; depends on nothing but the ticket."""

    pairs: Sequence[Pair]
    build: Callable[[Draw], E]

    def __call__(self, ticket: Ticket) -> Outcome[E]:
        pair = self.pairs[ticket.pair]
        try:
            draws = pair.draws(ticket.position)
        except ValueError as error:
            return Outcome((), (defect_of(error, pair.source),))
        examples: list[E] = []
        defects: list[Defect] = []
        for draw in draws:
            try:
                examples.append(self.build(draw))
            except ValueError as error:
                defects.append(defect_of(error, pair.source, key=draw.sample.key))
        return Outcome(tuple(examples), tuple(defects))
