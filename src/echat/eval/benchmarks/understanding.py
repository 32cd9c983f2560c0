"""Words and labels of real or made clips: word errors, accuracy and unweighted recall on any manifest."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import RenderableType

from echat.data.formats.manifest import read_manifest
from echat.data.sample import Sample
from echat.dialogue.labels import VALUES, LabelKind, Labels
from echat.eval.report import as_text, confusion_table, number, table, write_json
from echat.eval.runner import BATCH_SIZE, SkippedSamples, UnderstandingResult, evenly_spaced, understand
from echat.infer.events import Understanding
from echat.metrics import Confusion, ErrorRate, error_rate

if TYPE_CHECKING:
    from echat.infer.engine import Engine

KINDS: tuple[LabelKind, ...] = ("emotion", "gender", "age", "sound_event")
TASKS = {"text": "asr", "emotion": "emotion", "gender": "gender", "age": "age", "sound_event": "event"}


@dataclass(frozen=True)
class Scores:
    """How well a group of clips was heard."""

    clips: int
    words: ErrorRate
    labels: dict[LabelKind, Confusion]

    @classmethod
    def of(cls, results: Sequence[UnderstandingResult]) -> Scores:
        """Each figure over the clips whose manifest row knows the truth."""
        return cls(
            clips=len(results),
            words=error_rate((h.sample.text, h.output.text) for h in results if h.sample.text),
            labels={
                kind: Confusion.of(
                    (getattr(h.sample.labels, kind), getattr(h.output.labels, kind)) for h in results
                )
                for kind in KINDS
            },
        )

    def as_dict(self) -> dict[str, Any]:
        known = {kind: confusion.as_dict() for kind, confusion in self.labels.items() if confusion.total}
        return {"clips": self.clips, "word_errors": self.words.as_dict(), "labels": known}


@dataclass(frozen=True)
class UnderstandingReport:
    """Scores over all clips, per manifest, and per language where clips name one. Prints as tables."""

    overall: Scores
    sets: dict[str, Scores]
    languages: dict[str, Scores]
    skipped: SkippedSamples = field(default_factory=SkippedSamples)

    def as_dict(self) -> dict[str, Any]:
        return {
            "overall": self.overall.as_dict(),
            "sets": {name: scores.as_dict() for name, scores in self.sets.items()},
            "languages": {name: scores.as_dict() for name, scores in self.languages.items()},
            "skipped": self.skipped.reasons,
        }

    def __str__(self) -> str:
        return as_text(self._parts())

    def _parts(self) -> Iterator[RenderableType]:
        yield _summary("Per set", self.sets | {"all": self.overall})
        if len(self.languages) > 1:
            yield _summary("Per language", self.languages)
        for kind, confusion in self.overall.labels.items():
            if len(confusion.support) > 1:
                yield confusion_table(f"{kind}: {confusion.total} clips", confusion, VALUES[kind])
        if self.skipped:
            first = next(iter(self.skipped.reasons.values()))
            yield f"{len(self.skipped)} clips skipped; the first: {first}"


def run(
    engine: Engine,
    manifests: Sequence[Path | str],
    limit: int | None = None,
    json_out: Path | str | None = None,
    split: str | None = None,
    batch_size: int = BATCH_SIZE,
) -> UnderstandingReport:
    """Understand every clip of the manifests (``limit``: so many of each, evenly spaced) and score it.

    What a row knows is asked for by itself, each by the task of its name: many sets know one thing only,
    and a model that was trained on such sets was never asked for more.
    """
    skipped = SkippedSamples()
    named: list[tuple[str, Sample]] = []
    for name, path in _names([Path(path) for path in manifests]).items():
        named += [(name, sample) for sample in evenly_spaced(read_manifest(path, split), limit)]
    results = ask(engine, [sample for _, sample in named], batch_size, skipped)
    set_of = {id(sample): name for name, sample in named}
    report = UnderstandingReport(
        Scores.of(results),
        _grouped(results, [set_of[id(h.sample)] for h in results]),
        _grouped(results, [h.sample.language for h in results]),
        skipped,
    )
    if json_out is not None:
        write_json(json_out, report.as_dict())
    return report


def ask(
    engine: Engine, samples: Sequence[Sample], batch_size: int, skipped: SkippedSamples
) -> list[UnderstandingResult]:
    """What the engine hears in each sample of what its row knows, in the order of the samples."""
    outputs: dict[int, Understanding] = {}
    for name, task in TASKS.items():
        known = [sample for sample in samples if _knows(sample, name)]
        for result in understand(engine, known, task, batch_size, skipped):
            before = outputs.get(id(result.sample), Understanding("", Labels(), ""))
            outputs[id(result.sample)] = _with(before, name, result.output)
    return [UnderstandingResult(sample, outputs[id(sample)]) for sample in samples if id(sample) in outputs]


def _knows(sample: Sample, name: str) -> bool:
    return bool(sample.text if name == "text" else getattr(sample.labels, name))


def _with(before: Understanding, name: str, found: Understanding) -> Understanding:
    """The field `name` of a finding beside what was found before."""
    raw_text = " ".join(filter(None, [before.raw_text, found.raw_text]))
    if name == "text":
        return replace(before, text=found.text, raw_text=raw_text)
    labels = replace(before.labels, **{name: getattr(found.labels, name)})
    return replace(before, labels=labels, raw_text=raw_text)


def _grouped(results: Sequence[UnderstandingResult], names: Sequence[str | None]) -> dict[str, Scores]:
    groups: dict[str, list[UnderstandingResult]] = {}
    for item, name in zip(results, names, strict=True):
        if name is not None:
            groups.setdefault(name, []).append(item)
    return {name: Scores.of(group) for name, group in groups.items()}


def _names(paths: Sequence[Path]) -> dict[str, Path]:
    """A name per manifest: its folder, or the whole path where folders repeat."""
    folders = [path.resolve().parent.name for path in paths]
    return {
        folder if folders.count(folder) == 1 else str(path): path
        for folder, path in zip(folders, paths, strict=True)
    }


def _summary(title: str, scores: dict[str, Scores]) -> RenderableType:
    kinds = [kind for kind in KINDS if any(score.labels[kind].total for score in scores.values())]
    columns = ["set", "clips", "word errors", *(f"{kind} acc / recall" for kind in kinds)]
    rows = [
        [name, score.clips, number(score.words.rate), *(_label_cell(score.labels[kind]) for kind in kinds)]
        for name, score in scores.items()
    ]
    return table(title, columns, rows)


def _label_cell(confusion: Confusion) -> str:
    if not confusion.total:
        return "–"
    return f"{number(confusion.accuracy)} / {number(confusion.unweighted_recall)}"
