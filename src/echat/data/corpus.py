"""Random access to a corpus, whatever its format."""

from __future__ import annotations

from typing import Protocol

from echat.data.osum_format import read_raw
from echat.data.sample import Sample, read_manifest


class Records(Protocol):
    """Samples by number."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Sample:
        """Raises DataError for a bad record; its neighbours are not touched."""


class Corpus(Records, Protocol):
    """Records of one origin."""

    name: str


def open_corpus(path: str, format: str = "auto") -> Records:
    """Until the indexed readers come: in memory."""
    return read_raw(path) if format == "raw" else read_manifest(path)
