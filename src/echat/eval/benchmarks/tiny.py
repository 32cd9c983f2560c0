"""The bundled evaluation: held-out spoken questions, word errors, labels, appropriate replies, speech.

The test set is made by the corpus generator, not shipped; the same version of echat makes the same set. A
third of the questions each comes from unseen variants of a known TTS engine (``condition`` espeak), from an
engine voice that training never used (natural), and from both with noise (noise).
"""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field
from rich.console import RenderableType

import echat
from echat.audio.features import SAMPLE_RATE
from echat.data.formats.manifest import read_manifest
from echat.data.sample import Sample
from echat.dialogue.labels import VALUES, LabelKind
from echat.dialogue.thinking import LabelThought, LanguageThought, Thought
from echat.eval import judge
from echat.eval.benchmark import Benchmark, Scored
from echat.eval.benchmarks.understanding import ClipScore, Scores, require_manifests
from echat.eval.report import Measure, Report, confusion_table, markdown_table, measures_table
from echat.eval.runner import EvalItem, ModelResponse, ModelResponses, Request, evenly_spaced
from echat.metrics import ErrorRate, error_rate

SPOKEN_REPLIES = 60
"""Replies that are synthesised and transcribed."""
WORD_ERROR_BARS = {"espeak": 0.08, "natural": 0.30, "noise": 0.40}
LABEL_BARS: dict[LabelKind, float] = {"gender": 0.97, "age": 0.90, "emotion": 0.85, "sound_event": 0.90}
REPLY_BAR = PAIR_BAR = 0.85
PARSE_BAR = 0.99
BASELINE_MARGIN = 0.06
"""Spoken replies may lose so much more than flite reading the same texts."""
REAL_TIME_BAR = 1.5
"""Time to a spoken reply, in durations of question and answer."""
MEMORY_BAR_GB = 1.5
UNDERSTAND, ALOUD = Request("understand"), Request("s2s_think_label", aloud=True)
THOUGHT_FORMS: dict[Request, type[Thought]] = {
    Request("s2s_think_label"): LabelThought,
    Request("s2t_think_language"): LanguageThought,
}


@dataclass(frozen=True)
class TinyReport(Report):
    """The table of the model card, with the details behind it."""

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

    def parts(self) -> Iterator[RenderableType]:
        yield measures_table("Held-out spoken questions", self.measures)
        for kind, confusion in self.understanding.labels.items():
            yield confusion_table(kind, confusion, VALUES[kind])
        yield from self.notes


@dataclass(frozen=True)
class ReplyScore:
    """Of a reply as text."""

    is_appropriate: bool | None
    """None: the record names no accepted replies."""
    parses: bool
    """Is the thought complete and of the form that was asked for?"""


@dataclass(frozen=True)
class SpokenReply:
    """A synthesised reply: text, ASR transcript, and the transcript when flite reads the same text."""

    text: str
    transcript: str
    baseline_transcript: str
    real_time_factor: float
    """Time taken over the duration of question and answer."""

    @classmethod
    def of(cls, response: ModelResponse) -> SpokenReply:
        reply = response.output
        answer_seconds = (
            len(reply.waveform) / reply.rate if reply.waveform is not None and reply.rate else 0.0
        )
        return cls(
            reply.text,
            judge.transcribe(reply.waveform, reply.rate or SAMPLE_RATE),
            judge.transcribe_baseline(reply.text),
            reply.seconds.get("total", 0.0) / (response.question_seconds + answer_seconds),
        )


class Tiny(Benchmark):
    """The bundled evaluation: held-out spoken questions, how well they are understood and answered."""

    skips_bad_items: ClassVar[bool] = False  # the set is made: a sound that cannot be read is a fault of ours

    manifest: Path | None = Field(
        None, description="A held-out set made before; without it the set is made once."
    )

    def check(self) -> None:
        require_manifests([self.manifest] if self.manifest else [])

    def items(self) -> list[EvalItem]:
        samples = evenly_spaced(read_manifest(self.manifest or held_out_manifest()), self.limit)
        judged = {question.sample.key: question for question in judge.judged_questions(samples)}
        aloud = [] if judge.missing_programs() else evenly_spaced(samples, SPOKEN_REPLIES)
        keys = {sample.key for sample in aloud}
        return [
            EvalItem(
                sample,
                (UNDERSTAND, *THOUGHT_FORMS, *([ALOUD] if sample.key in keys else [])),
                condition(sample),
                judged.get(sample.key),
            )
            for sample in samples
        ]

    def score(self, response: ModelResponse) -> ClipScore | ReplyScore | SpokenReply | None:
        if response.request == UNDERSTAND:
            return ClipScore.of(response)
        if response.request == ALOUD:
            return SpokenReply.of(response) if response.output.text.strip() else None
        reply, question = response.output, response.item.reference
        return ReplyScore(
            None if question is None else question.is_appropriate(reply.text),
            reply.wellformed and isinstance(reply.thought, THOUGHT_FORMS[response.request]),
        )

    def report(self, scored: Sequence[Scored], responses: ModelResponses) -> TinyReport:
        by_request: dict[Request, list[Scored]] = {}
        for one in scored:
            by_request.setdefault(one.response.request, []).append(one)
        understood, in_labels = by_request[UNDERSTAND], by_request[next(iter(THOUGHT_FORMS))]
        reason = judge.missing_programs()
        if not responses.has_voice:
            reason = "spoken replies: not measured, the model has no token2wav"
        return TinyReport(
            measures=[
                *_word_errors(understood),
                *_labels(Scores.of(understood)),
                *(measure for request in THOUGHT_FORMS for measure in _replies(by_request[request], request)),
                *_spoken_measures([one.score for one in by_request.get(ALOUD, [])], reason or ""),
            ],
            understanding=Scores.of(understood),
            notes=[reason] if reason else [],
            examples=[_example(one.response) for one in evenly_spaced(in_labels, 20)],
        )


def held_out_manifest() -> Path:
    """The manifest of the held-out questions, made in the cache on the first call; a stopped one resumes."""
    from echat.corpus.build import build_held_out
    from echat.progress import progress
    from echat.release.hub_models import cache_folder

    folder = cache_folder() / f"tiny-held-out-{echat.__version__}"
    if not (folder / "manifest.jsonl").is_file():
        _require_synthesis()
        print(f"making the held-out questions in {folder}, once", file=sys.stderr)
    with progress("making questions") as step:
        return build_held_out(folder, workers=min(2, os.cpu_count() or 1), progress=step)


def _require_synthesis() -> None:
    """Everything that is missing, and the one line that brings it, before anything is made."""
    from importlib.util import find_spec
    from shutil import which

    from echat.corpus.en.voices import voices
    from echat.optional_dependencies import how_to_install

    programs = sorted({voice.engine for voice in voices("test")})
    missing = [name for name in programs if which(name) is None]
    packages = [name for name in ("pyworld", "scipy") if find_spec(name) is None]
    remedies = [f"apt-get install {' '.join(missing)}"] if missing else []
    remedies += [how_to_install(packages[0])] if packages else []
    if remedies:
        raise ValueError(
            f"making the held-out questions: expected {', '.join([*programs, 'pyworld', 'scipy'])}, found no "
            f"{', '.join(missing + packages)}; {' && '.join(remedies)}, or give --manifest"
        )


def condition(sample: Sample) -> str:
    """The third of the set that a sample belongs to."""
    named = sample.extra.get("condition")
    if named:
        return str(named)
    if sample.extra.get("noise") is not None:
        return "noise"
    return "espeak" if str(sample.extra.get("engine", "")).startswith("espeak") else "natural"


def _word_errors(understood: Sequence[Scored]) -> Iterator[Measure]:
    for name, bar in WORD_ERROR_BARS.items():
        rate = error_rate(
            one.score.words for one in understood if one.response.item.group == name and one.score.words
        )
        yield Measure(f"word errors, {name}", rate.rate, rate.texts, bar, at_least=False)


def _labels(scores: Scores) -> Iterator[Measure]:
    for kind, bar in LABEL_BARS.items():
        confusion = scores.labels[kind]
        recall = confusion.unweighted_recall
        note = "" if recall is None else f"unweighted recall {100 * recall:.1f} %"
        yield Measure(
            f"{kind.replace('_', ' ')} accuracy", confusion.accuracy, confusion.total, bar, note=note
        )


def _replies(answered: Sequence[Scored], request: Request) -> Iterator[Measure]:
    is_label = THOUGHT_FORMS[request] is LabelThought
    form = "label" if is_label else "language"
    fits = {
        one.response.item.sample.key: one.score.is_appropriate
        for one in answered
        if one.score.is_appropriate is not None
    }
    asked = [one.response.item.reference for one in answered if one.score.is_appropriate is not None]
    yield Measure(
        f"reply fits ({form} thought)", _share(fits.values()), len(fits), REPLY_BAR if is_label else None
    )
    pairs = [
        fits[a.sample.key] and fits[b.sample.key] for a, b in judge.cue_pairs(asked)
    ]  # no reply fits both, so two that fit differ
    yield Measure(
        f"pairs answered apart ({form} thought)", _share(pairs), len(pairs), PAIR_BAR if is_label else None
    )
    yield Measure(
        f"{form} thought parses", _share(one.score.parses for one in answered), len(answered), PARSE_BAR
    )


def _spoken_measures(spoken_replies: Sequence[SpokenReply], note: str) -> Iterator[Measure]:
    ours = error_rate((item.text, item.transcript) for item in spoken_replies)
    baseline = error_rate((item.text, item.baseline_transcript) for item in spoken_replies)
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


def _share(outcomes: Iterable[Any]) -> float | None:
    outcomes = list(outcomes)
    return sum(outcomes) / len(outcomes) if outcomes else None


def _example(response: ModelResponse) -> dict[str, str]:
    sample = response.item.sample
    return {"key": sample.key, "question": sample.text or "", "output": response.output.raw_text}
