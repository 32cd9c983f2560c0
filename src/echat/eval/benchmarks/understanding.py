"""Understanding of any labelled clips: word error rate, accuracy and unweighted recall per label."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import Field
from rich.console import RenderableType

from echat.data.formats.manifest import read_manifest
from echat.data.sample import Sample
from echat.dialogue.labels import EVALUATED_KINDS, VALUES, LabelKind
from echat.dialogue.tasks import TASKS, get_task
from echat.eval.benchmark import Benchmark, Scored
from echat.eval.report import Report, confusion_table, number, table
from echat.eval.runner import EvalItem, ModelResponse, ModelResponses, Request, evenly_spaced
from echat.metrics import Confusion, ErrorRate, error_rate

WORDS = Request("asr")
LABELS = {  # label kind -> the task that asks for it alone
    kind: Request(
        next(name for name, task in TASKS.items() if task.labels == (kind,) and not task.transcribes)
    )
    for kind in EVALUATED_KINDS
}


@dataclass(frozen=True)
class ClipScore:
    """Truth and prediction of the words and labels in one response."""

    words: tuple[str, str] | None
    """(reference, hypothesis)"""
    labels: dict[LabelKind, tuple[str | None, str | None]]

    @classmethod
    def of(cls, response: ModelResponse) -> ClipScore:
        """Of what the task asks for and the record of the clip knows."""
        sample, output, task = response.item.sample, response.output, get_task(response.request.task)
        return cls(
            (sample.text, output.text) if task.transcribes and sample.text else None,
            {
                kind: (getattr(sample.labels, kind), getattr(output.labels, kind))
                for kind in EVALUATED_KINDS
                if kind in task.labels
            },
        )


@dataclass(frozen=True)
class Scores:
    """Word errors and label scores of a group of clips."""

    clips: int
    words: ErrorRate
    labels: dict[LabelKind, Confusion]

    @classmethod
    def of(cls, scored: Sequence[Scored]) -> Scores:
        """Each figure over the clips whose record knows the truth."""
        scores = [one.score for one in scored]
        return cls(
            clips=len({id(one.response.item) for one in scored}),
            words=error_rate(score.words for score in scores if score.words),
            labels={
                kind: Confusion.of(score.labels[kind] for score in scores if kind in score.labels)
                for kind in EVALUATED_KINDS
            },
        )

    def as_dict(self) -> dict[str, Any]:
        known = {kind: confusion.as_dict() for kind, confusion in self.labels.items() if confusion.total}
        return {"clips": self.clips, "word_errors": self.words.as_dict(), "labels": known}


@dataclass(frozen=True)
class UnderstandingReport(Report):
    """Scores over all clips, per manifest, and per language where clips name one."""

    overall: Scores
    sets: dict[str, Scores]
    languages: dict[str, Scores]
    skipped: dict[str, str] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        return {
            "overall": self.overall.as_dict(),
            "sets": {name: scores.as_dict() for name, scores in self.sets.items()},
            "languages": {name: scores.as_dict() for name, scores in self.languages.items()},
            "skipped": self.skipped,
        }

    def parts(self) -> Iterator[RenderableType]:
        yield _summary("Per set", self.sets | {"all": self.overall})
        if len(self.languages) > 1:
            yield _summary("Per language", self.languages)
        for kind, confusion in self.overall.labels.items():
            if len(confusion.support) > 1:
                yield confusion_table(f"{kind}: {confusion.total} clips", confusion, VALUES[kind])
        if self.skipped:
            first = next(iter(self.skipped.values()))
            yield f"{len(self.skipped)} clips skipped; the first: {first}"


class UnderstandingBenchmark(Benchmark):
    """Word errors, accuracy and unweighted recall per label on any manifest of clips.

    What a record knows is asked for by itself, each by the task of its name: many sets know one thing only,
    and a model that was trained on such sets was never asked for more.
    """

    manifest: list[Path] = Field(description="JSON lines of labelled clips. Repeatable.")
    split: str | None = Field(None, description="Only rows of this split, such as test.")

    def check(self) -> None:
        require_manifests(self.manifest)

    def items(self) -> list[EvalItem]:
        return [
            EvalItem(sample, requests, name)
            for name, path in _names(self.manifest).items()
            for sample in evenly_spaced(read_manifest(path, self.split), self.limit)
            if (requests := tuple(_requests(sample)))
        ]

    def score(self, response: ModelResponse) -> ClipScore:
        return ClipScore.of(response)

    def report(self, scored: Sequence[Scored], responses: ModelResponses) -> UnderstandingReport:
        return UnderstandingReport(
            Scores.of(scored),
            _grouped(scored, [one.response.item.group for one in scored]),
            _grouped(scored, [one.response.item.sample.language for one in scored]),
            responses.skipped,
        )


def require_manifests(paths: Iterable[Path]) -> None:
    """Refuse a wrong path before a model is loaded."""
    for path in paths:
        if not path.is_file():
            found = "a folder" if path.is_dir() else "nothing"
            raise ValueError(f"{path}: expected a manifest in JSON lines, found {found}; check the path")


def _requests(sample: Sample) -> Iterator[Request]:
    """One task for each thing that the record knows."""
    if sample.text:
        yield WORDS
    for kind, request in LABELS.items():
        if getattr(sample.labels, kind):
            yield request


def _grouped(scored: Sequence[Scored], names: Sequence[str | None]) -> dict[str, Scores]:
    groups: dict[str, list[Scored]] = {}
    for one, name in zip(scored, names, strict=True):
        if name is not None:
            groups.setdefault(name, []).append(one)
    return {name: Scores.of(group) for name, group in groups.items()}


def _names(paths: Sequence[Path]) -> dict[str, Path]:
    """A name per manifest: its folder, or the whole path where folders repeat."""
    folders = [path.resolve().parent.name for path in paths]
    return {
        folder if folders.count(folder) == 1 else str(path): path
        for folder, path in zip(folders, paths, strict=True)
    }


def _summary(title: str, scores: dict[str, Scores]) -> RenderableType:
    kinds = [kind for kind in EVALUATED_KINDS if any(score.labels[kind].total for score in scores.values())]
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
