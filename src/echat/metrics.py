"""Metrics: word error rate, confusion matrix, accuracy, unweighted recall. Unreadable output is wrong."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

# Scripts without blanks between words: each character is a unit.
_SINGLE = re.compile(r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff]")
_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)*")


def words(text: str) -> list[str]:
    """Units of an error rate: lower-case words without punctuation, and each CJK character by itself.

    Apostrophes inside words stay; numbers are compared as written.
    """
    text = unicodedata.normalize("NFKC", text).lower().replace("\u2019", "'")
    return _WORD.findall(_SINGLE.sub(lambda found: f" {found.group()} ", text))


def edit_distance(reference: Sequence[str], found: Sequence[str]) -> int:
    """Least number of substitutions, deletions and insertions between the two."""
    row = list(range(len(found) + 1))
    for i, wanted in enumerate(reference, 1):
        diagonal, row[0] = row[0], i
        for j, unit in enumerate(found, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (wanted != unit))
    return row[-1]


@dataclass(frozen=True)
class ErrorRate:
    """Errors against the number of reference words (characters in CJK), summed over texts."""

    errors: int = 0
    length: int = 0
    texts: int = 0

    @property
    def rate(self) -> float | None:
        """Share of errors; None without any reference word."""
        return self.errors / self.length if self.length else None

    def as_dict(self) -> dict[str, float | int | None]:
        return {"rate": self.rate, "errors": self.errors, "words": self.length, "texts": self.texts}


def error_rate(pairs: Iterable[tuple[str, str]]) -> ErrorRate:
    """Of (reference, found) texts; a reference without words is left out."""
    errors = length = texts = 0
    for reference, found in pairs:
        wanted = words(reference)
        if wanted:
            errors += edit_distance(wanted, words(found))
            length += len(wanted)
            texts += 1
    return ErrorRate(errors, length, texts)


@dataclass(frozen=True)
class Confusion:
    """Counts of (true label, predicted label); a prediction is None where nothing readable was said."""

    counts: Counter[tuple[str, str | None]]

    @classmethod
    def of(cls, pairs: Iterable[tuple[str | None, str | None]]) -> Confusion:
        """From (truth, prediction) pairs; items whose truth is unknown are left out."""
        return cls(Counter((truth, said) for truth, said in pairs if truth is not None))

    @property
    def total(self) -> int:
        return sum(self.counts.values())

    @property
    def support(self) -> dict[str, int]:
        """Items per true label."""
        support: Counter[str] = Counter()
        for (truth, _), count in self.counts.items():
            support[truth] += count
        return dict(support)

    @property
    def accuracy(self) -> float | None:
        """Share of right predictions; None without items."""
        right = sum(count for (truth, said), count in self.counts.items() if truth == said)
        return right / self.total if self.total else None

    @property
    def recalls(self) -> dict[str, float]:
        """Share found of each true label."""
        return {truth: self.counts[truth, truth] / count for truth, count in self.support.items()}

    @property
    def unweighted_recall(self) -> float | None:
        """Mean recall over the labels that occur, each label counting the same."""
        recalls = self.recalls
        return sum(recalls.values()) / len(recalls) if recalls else None

    def as_dict(self) -> dict[str, object]:
        matrix: dict[str, dict[str, int]] = {truth: {} for truth in self.support}
        for (truth, said), count in self.counts.items():
            matrix[truth][said or "unreadable"] = count
        return {
            "accuracy": self.accuracy,
            "unweighted_recall": self.unweighted_recall,
            "items": self.total,
            "recalls": self.recalls,
            "confusion": matrix,
        }
