"""Corpus statistics: records, hours, counts of tasks and labels, histograms of lengths."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from echat.checkpoint import atomic_path
from echat.data.defects import printable
from echat.data.sample import Sample
from echat.dialogue.labels import KINDS, in_english

_SECONDS = (0.5, 1, 2, 3, 5, 7.5, 10, 15, 20, 30, 60, 120, 300)
_CHARACTERS = (5, 10, 20, 40, 60, 80, 120, 160, 240, 320, 500, 1000)
EDGES: dict[str, tuple[float, ...]] = {  # of the bins of each histogram, by what is counted
    "seconds heard": _SECONDS,
    "seconds of reply": _SECONDS,
    "letters of text": _CHARACTERS,
    "letters of reply": _CHARACTERS,
    "speech ids": (25, 50, 75, 100, 150, 200, 300, 400, 500, 750, 1000),
    "earlier turns": (1, 2, 3, 4, 5, 7, 10),
}
COUNTED = ("task", *KINDS, "language", "split")
UNKNOWN = "not known"
_BAR = 40  # columns of the longest bar


@dataclass(frozen=True, slots=True)
class AudioLengths:
    """Seconds of the sounds of one record, None for those it has not."""

    question: float | None = None
    reply: float | None = None
    history: float = 0.0


@dataclass(slots=True)
class CorpusStatistics:
    """Sums over records; those of parts add up to those of the whole."""

    records: int = 0
    seconds: Counter[str] = field(default_factory=Counter)  # question, reply, history
    words: dict[str, Counter[str]] = field(default_factory=lambda: {name: Counter() for name in COUNTED})
    bins: dict[str, Counter[int]] = field(default_factory=lambda: {name: Counter() for name in EDGES})

    def add(self, sample: Sample, lengths: AudioLengths, times: int = 1) -> None:
        """Count a record; ``times`` -1 takes it back."""
        self.records += times
        for name, value in asdict(lengths).items():
            self.seconds[name] += (value or 0.0) * times  # type: ignore[assignment]  # no whole numbers
        labels = sample.labels.as_dict()
        for name in COUNTED:
            value = labels[name] if name in labels else getattr(sample, name)
            self.words[name][UNKNOWN if value is None else value] += times
        for name, measure in _measures(sample, lengths):
            self.bins[name][bisect_right(EDGES[name], measure)] += times

    def merge(self, other: CorpusStatistics) -> None:
        self.records += other.records
        self.seconds.update(other.seconds)
        for name in COUNTED:
            self.words[name].update(other.words[name])
        for name in EDGES:
            self.bins[name].update(other.bins[name])

    def histogram(self, name: str) -> list[tuple[str, int]]:
        """(bin, count) from the first bin that holds something to the last."""
        edges, bins = EDGES[name], self.bins[name]
        held = [number for number, count in bins.items() if count]
        if not held:
            return []
        shown = range(min(held), max(held) + 1)
        return [(_bin_name(edges, number), bins[number]) for number in shown]

    def as_dict(self) -> dict[str, Any]:
        return {
            "records": self.records,
            "hours": {name: seconds / 3600 for name, seconds in self.seconds.items()},
            "counts": {name: dict(self.words[name].most_common()) for name in COUNTED},
            "histograms": {name: dict(self.histogram(name)) for name in EDGES},
        }

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        hours = (f"{name} {seconds / 3600:.3g}" for name, seconds in self.seconds.items() if seconds)
        yield "hours: " + (", ".join(hours) or "none")
        for name in COUNTED:
            known = [(word, count) for word, count in self.words[name].most_common() if count > 0]
            if any(word != UNKNOWN for word, _ in known):
                yield f"{name.replace('_', ' ')}: " + ", ".join(
                    f"{printable(in_english(word), _BAR)} {count:,}" for word, count in known
                )
        for name in EDGES:
            rows = self.histogram(name)
            if rows and not (len(rows) == 1 and name == "earlier turns" and self.bins[name][0]):
                yield f"{name}:"
                yield from _bars(rows)


def _measures(sample: Sample, lengths: AudioLengths) -> Iterator[tuple[str, float]]:
    measures: Mapping[str, float | None] = {
        "seconds heard": lengths.question,
        "seconds of reply": lengths.reply,
        "letters of text": len(sample.text) if sample.text is not None else None,
        "letters of reply": len(sample.reply) if sample.reply is not None else None,
        "speech ids": len(sample.speech_ids) if sample.speech_ids else None,
        "earlier turns": len(sample.history),
    }
    return ((name, measure) for name, measure in measures.items() if measure is not None)


def _bin_name(edges: tuple[float, ...], number: int) -> str:
    low, high = ([0, *edges][number], [*edges, float("inf")][number])
    if high == float("inf"):
        return f"from {low:g}"
    if high - low == 1 and all(isinstance(edge, int) for edge in edges):
        return f"{low:g}"
    return f"{low:g} to {high:g}" if number else f"below {high:g}"


def _bars(rows: list[tuple[str, int]]) -> Iterator[str]:
    width = max(len(name) for name, _ in rows)
    most = max(count for _, count in rows)
    for name, count in rows:
        bar = "█" * max(round(_BAR * count / most), 1 if count else 0)
        yield f"  {name:>{width}} {bar:{_BAR}} {count:,}"


# --- The same as pictures.


def write_histograms(totals: CorpusStatistics, folder: Path) -> list[Path]:
    """One PNG for each quantity that the corpus has; returns their paths."""
    written = []
    for name in EDGES:
        rows = totals.histogram(name)
        if not rows:
            continue
        path = folder / f"{name.replace(' ', '_')}.png"
        with picture(path) as axes:
            axes.bar([bin_name for bin_name, _ in rows], [count for _, count in rows], width=0.9)
            axes.set_xlabel(name)
            axes.set_ylabel("records")
            axes.tick_params(axis="x", rotation=45)
        written.append(path)
    return written


@contextmanager
def picture(path: Path) -> Iterator[Any]:
    """Axes of a new picture, saved atomically."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.0, 4.0), layout="constrained")
    FigureCanvasAgg(figure)
    yield figure.add_subplot()
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=100)
