"""Figures for people (tables), for model cards (markdown) and for programs (JSON)."""

from __future__ import annotations

import io
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console, RenderableType
from rich.table import Table

from echat.checkpoint import atomic_path
from echat.dialogue.labels import in_english
from echat.metrics import Confusion

WIDTH = 120


class Report(ABC):
    """The figures of a benchmark: tables for people, markdown for model cards, JSON for programs."""

    @abstractmethod
    def as_dict(self) -> dict[str, Any]:
        """Everything, for JSON."""

    @abstractmethod
    def parts(self) -> Iterable[RenderableType]:
        """Tables and lines, for people."""

    def as_markdown(self) -> str:
        """For a model card."""
        return f"```\n{self}\n```\n"

    def __str__(self) -> str:
        buffer = io.StringIO()
        console = Console(file=buffer, width=WIDTH, highlight=False)
        for part in self.parts():
            console.print(part)
        return buffer.getvalue().rstrip("\n")


@dataclass(frozen=True)
class Measure:
    """One figure of a benchmark and the bar it is held against. Shares are printed in percent."""

    name: str
    value: float | None
    """None: not measured."""
    items: int
    bar: float | None = None
    at_least: bool = True
    is_share: bool = True
    note: str = ""

    @property
    def ok(self) -> bool | None:
        """Is the bar met? None where there is no bar; not measured is not met."""
        if self.bar is None:
            return None
        if self.value is None:
            return False
        return self.value >= self.bar if self.at_least else self.value <= self.bar

    @property
    def shown(self) -> str:
        return number(self.value, self.is_share)

    @property
    def shown_bar(self) -> str:
        return (
            "" if self.bar is None else f"{'≥' if self.at_least else '≤'} {number(self.bar, self.is_share)}"
        )

    @property
    def verdict(self) -> str:
        return {None: "", True: "met", False: "missed"}[self.ok]

    def as_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "value": self.value,
            "items": self.items,
            "bar": self.bar,
            "at_least": self.at_least,
            "ok": self.ok,
            "note": self.note,
        }


def number(value: float | None, is_share: bool = True) -> str:
    if value is None:
        return "–"
    return f"{100 * value:.1f} %" if is_share else f"{value:.2f}"


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Table:
    """A table whose first column is text and whose other columns are figures."""
    made = Table(title=title, title_justify="left", title_style="bold")
    for n, column in enumerate(columns):
        made.add_column(column, justify="left" if n == 0 else "right")
    for row in rows:
        made.add_row(*map(str, row))
    return made


def measures_table(title: str, measures: Sequence[Measure]) -> Table:
    rows = [(m.name, m.shown, m.items, m.shown_bar, m.verdict, m.note) for m in measures]
    return table(title, ("measure", "value", "items", "bar", "verdict", "note"), rows)


def confusion_table(title: str, confusion: Confusion, order: Sequence[str]) -> Table:
    """True labels down, predictions across, with recall; labels that never occur are left out."""
    predicted = {prediction for _, prediction in confusion.counts}
    truths = [label for label in order if label in confusion.support]
    columns = [label for label in order if label in predicted or label in truths]
    spoken: list[str | None] = [*columns, *([None] if None in predicted else [])]
    rows = [
        (
            in_english(truth),
            *(confusion.counts[truth, label] for label in spoken),
            number(confusion.recalls[truth]),
        )
        for truth in truths
    ]
    columns_shown = [in_english(label) if label else "unreadable" for label in spoken]
    return table(title, ("true \\ said", *columns_shown, "recall"), rows)


def markdown_table(measures: Sequence[Measure]) -> str:
    """The measures as a markdown table, for the model card."""
    lines = ["| measure | value | items | bar | verdict |", "|---|---|---|---|---|"]
    lines += [f"| {m.name} | {m.shown} | {m.items} | {m.shown_bar} | {m.verdict} |" for m in measures]
    return "\n".join(lines) + "\n"


def write_json(path: Path | str, figures: Mapping[str, Any]) -> None:
    """A JSON file, whole or not at all."""
    write_text(path, json.dumps(figures, ensure_ascii=False, indent=2) + "\n")


def write_text(path: Path | str, text: str) -> None:
    """A text file, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
