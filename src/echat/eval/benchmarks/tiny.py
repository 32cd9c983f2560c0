"""The bundled evaluation: held-out spoken questions, how well they were heard, and how fittingly answered.

The test set is made, not shipped: whoever may make corpora passes ``build``, which writes ``manifest.jsonl``
and its sounds into a folder; the same call makes the same set. A third of the questions each comes from
unseen variants of a known engine (``condition`` espeak), from an engine voice never heard in training
(natural), and from both with noise (noise).
"""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import RenderableType

from echat.audio.features import SAMPLE_RATE
from echat.data.formats.manifest import read_manifest
from echat.data.sample import Sample
from echat.dialogue.labels import VALUES
from echat.dialogue.thinking import LabelThought, LanguageThought
from echat.dialogue.turns import Conversation, UserTurn
from echat.eval import judge
from echat.eval.benchmarks.understanding import Scores
from echat.eval.report import (
    Measure,
    as_text,
    confusion_table,
    markdown_table,
    measures_table,
    write_json,
    write_markdown,
)
from echat.eval.runner import (
    BATCH_SIZE,
    ReplyResult,
    answer,
    evenly_spaced,
    load_question,
    understand,
    with_progress,
)
from echat.metrics import ErrorRate, error_rate

if TYPE_CHECKING:
    from echat.infer.engine import Engine
    from echat.infer.events import Reply

SPOKEN_REPLIES = 60
"""Replies that are synthesised and transcribed."""
WORD_ERROR_BARS = {"espeak": 0.08, "natural": 0.30, "noise": 0.40}
LABEL_BARS = {"gender": 0.97, "age": 0.90, "emotion": 0.85, "sound_event": 0.90}
REPLY_BAR = PAIR_BAR = 0.85
PARSE_BAR = 0.99
BASELINE_MARGIN = 0.06
"""Spoken replies may lose so much more than flite reading the same texts."""
REAL_TIME_BAR = 1.5
"""Time to a spoken reply, in durations of question and answer."""
MEMORY_BAR_GB = 1.5
LABEL_TASK, LANGUAGE_TASK = "s2s_think_label", "s2t_think_language"


@dataclass(frozen=True)
class TinyReport:
    """The table of the model card, with the details behind it. Prints as tables."""

    measures: list[Measure]
    understanding: Scores
    notes: list[str] = field(default_factory=list)
    examples: list[dict[str, str]] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        return {
            "measures": [measure.as_dict() for measure in self.measures],
            "understanding": self.understanding.as_dict(),
            "notes": self.notes,
            "examples": self.examples,
        }

    def as_markdown(self) -> str:
        return markdown_table(self.measures) + "".join(f"\n{note}\n" for note in self.notes)

    def __str__(self) -> str:
        return as_text(self._parts())

    def _parts(self) -> Iterator[RenderableType]:
        yield measures_table("Held-out spoken questions", self.measures)
        for kind, confusion in self.understanding.labels.items():
            yield confusion_table(kind, confusion, VALUES[kind])
        yield from self.notes


@dataclass(frozen=True)
class SpokenReply:
    """A synthesised reply, what was heard in it, and what was heard when flite read the same text."""

    reply: Reply
    question_seconds: float
    transcript: str
    baseline_transcript: str

    @property
    def real_time_factor(self) -> float:
        """Time taken over the duration of question and answer."""
        waveform, rate = self.reply.waveform, self.reply.rate
        answer_seconds = len(waveform) / rate if waveform is not None and rate else 0.0
        return self.reply.seconds.get("total", 0.0) / (self.question_seconds + answer_seconds)


def run(
    engine: Engine,
    manifest: Path | str | None = None,
    limit: int | None = None,
    json_out: Path | str | None = None,
    markdown_out: Path | str | None = None,
    build: Callable[[Path], object] | None = None,
    cache: Path | str | None = None,
    spoken: int = SPOKEN_REPLIES,
    batch_size: int = BATCH_SIZE,
    seed: int = 0,
) -> TinyReport:
    """Measure the engine on the held-out set (``limit``: so many questions, evenly spaced)."""
    samples = read_manifest(held_out_manifest(manifest, build, cache))
    samples = evenly_spaced(samples, limit)
    results = understand(engine, samples, batch_size=batch_size)
    in_labels = answer(engine, samples, LABEL_TASK, batch_size, seed)
    in_words = answer(engine, samples, LANGUAGE_TASK, batch_size, seed)
    reason = _cannot_speak(engine) if spoken else None
    spoken_replies = [] if reason or not spoken else speak(engine, evenly_spaced(samples, spoken), seed)
    report = TinyReport(
        measures=[
            *_word_errors(results),
            *_labels(Scores.of(results)),
            *_replies(in_labels, in_words),
            *_spoken_measures(spoken_replies, reason or ""),
        ],
        understanding=Scores.of(results),
        notes=[reason] if reason else [],
        examples=[_example(item) for item in evenly_spaced(in_labels, 20)],
    )
    if json_out is not None:
        write_json(json_out, report.as_dict())
    if markdown_out is not None:
        write_markdown(markdown_out, report.as_markdown())
    return report


def held_out_manifest(
    manifest: Path | str | None,
    build: Callable[[Path], object] | None = None,
    cache: Path | str | None = None,
) -> Path:
    """The given manifest, or the one of the cache folder, which is built when it is not there."""
    if manifest is not None:
        return Path(manifest)
    home = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser()
    folder = Path(cache) if cache is not None else home / "echat" / "tiny-held-out"
    path = folder / "manifest.jsonl"
    if not path.is_file() and build is not None:
        build(folder)
    if not path.is_file():
        raise ValueError(
            f"{path}: expected the manifest of the held-out set, found nothing; "
            "give --manifest or build the set there"
        )
    return path


def condition(sample: Sample) -> str:
    """Which third of the set a sample belongs to."""
    named = sample.extra.get("condition")
    if named:
        return str(named)
    if sample.extra.get("noise") is not None:
        return "noise"
    return "espeak" if str(sample.extra.get("engine", "")).startswith("espeak") else "natural"


def speak(engine: Engine, samples: Sequence[Sample], seed: int = 0) -> list[SpokenReply]:
    """Answer each question aloud, one by one as a person would ask, and transcribe the answers."""
    spoken_replies = []
    for sample in with_progress(samples, "answering aloud"):
        question = load_question(sample)
        reply = engine.run(Conversation([UserTurn(audio=question)]), LABEL_TASK, seed=seed)
        if reply.text.strip():
            transcript = judge.transcribe(reply.waveform, reply.rate or SAMPLE_RATE)
            spoken_replies.append(
                SpokenReply(
                    reply, len(question) / SAMPLE_RATE, transcript, judge.transcribe_baseline(reply.text)
                )
            )
    return spoken_replies


def _word_errors(results: Sequence[Any]) -> Iterator[Measure]:
    for name, bar in WORD_ERROR_BARS.items():
        pairs = [
            (h.sample.text, h.output.text) for h in results if condition(h.sample) == name and h.sample.text
        ]
        rate = error_rate(pairs)
        yield Measure(f"word errors, {name}", rate.rate, rate.texts, bar, at_least=False)


def _labels(scores: Scores) -> Iterator[Measure]:
    for kind, bar in LABEL_BARS.items():
        confusion = scores.labels[kind]  # type: ignore[index]
        recall = confusion.unweighted_recall
        note = "" if recall is None else f"unweighted recall {100 * recall:.1f} %"
        yield Measure(
            f"{kind.replace('_', ' ')} accuracy", confusion.accuracy, confusion.total, bar, note=note
        )


def _replies(in_labels: Sequence[ReplyResult], in_words: Sequence[ReplyResult]) -> Iterator[Measure]:
    for form, answered in (("label", in_labels), ("language", in_words)):
        wanted = LabelThought if form == "label" else LanguageThought
        replies = {item.sample.key: item.reply.text for item in answered}
        asked = judge.judged_questions([item.sample for item in answered])
        right = {q.sample.key: q.is_appropriate(replies[q.sample.key]) for q in asked}
        bar = REPLY_BAR if form == "label" else None
        yield Measure(f"reply fits ({form} thought)", _share(right.values()), len(right), bar)
        pairs = [
            right[a.sample.key] and right[b.sample.key] for a, b in judge.cue_pairs(asked)
        ]  # no reply fits both, so two that fit differ
        yield Measure(
            f"pairs answered apart ({form} thought)", _share(pairs), len(pairs), PAIR_BAR if bar else None
        )
        parsed = [item.reply.wellformed and isinstance(item.reply.thought, wanted) for item in answered]
        yield Measure(f"{form} thought parses", _share(parsed), len(parsed), PARSE_BAR)


def _spoken_measures(spoken_replies: Sequence[SpokenReply], note: str) -> Iterator[Measure]:
    ours = error_rate((item.reply.text, item.transcript) for item in spoken_replies)
    baseline = error_rate((item.reply.text, item.baseline_transcript) for item in spoken_replies)
    bar = None if baseline.rate is None else baseline.rate + BASELINE_MARGIN
    yield Measure(
        "word errors of spoken replies",
        ours.rate,
        ours.texts,
        bar,
        at_least=False,
        note=_baseline_note(baseline) or note,
    )
    factors = [item.real_time_factor for item in spoken_replies]
    yield Measure(
        "time to spoken reply / (question + answer)",
        sum(factors) / len(factors) if factors else None,
        len(factors),
        REAL_TIME_BAR,
        at_least=False,
        is_share=False,
    )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e9 if sys.platform == "darwin" else 1e6)
    yield Measure("peak memory of the evaluation, GB", peak, 1, MEMORY_BAR_GB, at_least=False, is_share=False)


def _baseline_note(rate: ErrorRate) -> str:
    return "" if rate.rate is None else f"flite slt: {100 * rate.rate:.1f} %"


def _cannot_speak(engine: Engine) -> str | None:
    if engine.token2wav is None:
        return "spoken replies: not measured, the model has no token2wav"
    return judge.missing_programs()


def _share(outcomes: Any) -> float | None:
    outcomes = list(outcomes)
    return sum(outcomes) / len(outcomes) if outcomes else None


def _example(item: ReplyResult) -> dict[str, str]:
    return {"key": item.sample.key, "question": item.sample.text or "", "output": item.reply.raw_text}
