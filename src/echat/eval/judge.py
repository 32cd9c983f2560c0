"""Rule-based judges: is a reply appropriate, and what does an ASR program recognize in its speech?"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from echat.audio.features import SAMPLE_RATE
from echat.audio.resampling import resample
from echat.audio.waveform import write
from echat.data.sample import Sample
from echat.metrics import edit_distance, words

NEAR = 0.10
"""Share of wrong words up to which a reply still counts as a known one."""
RECOGNISER = "pocketsphinx_continuous"
BASELINE_TTS = "flite"


def is_appropriate(reply: str, accepted: Iterable[str], others: Iterable[str] = ()) -> bool:
    """Is the reply one of ``accepted``, but for at most 10 % wrong words?

    One with wrong words must be nearer to an accepted reply than to any of ``others``, the replies that the
    same situation has for other cues.
    """
    hypothesis = words(reply)
    distances = [
        (edit_distance(reference, hypothesis), len(reference))
        for reference in map(words, accepted)
        if reference
    ]
    if not distances:
        return False
    best = min(distance for distance, _ in distances)
    if best == 0:
        return True
    is_near = any(distance <= NEAR * length for distance, length in distances)
    return is_near and all(best < edit_distance(words(other), hypothesis) for other in others)


@dataclass(frozen=True)
class JudgedQuestion:
    """A synthetic dialogue with its accepted replies."""

    sample: Sample
    situation: str
    accepted: tuple[str, ...]
    others: tuple[str, ...]
    """Replies of the same situation for other cues."""

    def is_appropriate(self, reply: str) -> bool:
        return is_appropriate(reply, self.accepted, self.others)


def judged_questions(samples: Sequence[Sample]) -> list[JudgedQuestion]:
    """Synthetic dialogues with accepted and other replies; rows without accepted replies are left out."""
    made = [sample for sample in samples if sample.extra.get("accepted")]
    known: dict[str, dict[str, None]] = {}
    for sample in made:
        known.setdefault(_situation(sample), {}).update(dict.fromkeys(sample.extra["accepted"]))
        known[_situation(sample)].update(dict.fromkeys(sample.extra.get("replies", ())))
    return [
        JudgedQuestion(
            sample,
            _situation(sample),
            tuple(sample.extra["accepted"]),
            tuple(reply for reply in known[_situation(sample)] if reply not in sample.extra["accepted"]),
        )
        for sample in made
    ]


def cue_pairs(asked: Sequence[JudgedQuestion]) -> Iterator[tuple[JudgedQuestion, JudgedQuestion]]:
    """Cue pairs: same words, other cues, no common accepted reply. A field ``pair`` alone decides."""
    groups: dict[object, list[JudgedQuestion]] = {}
    for question in asked:
        pair = question.sample.extra.get("pair")
        words_said = " ".join(words(question.sample.text or ""))
        key: object = ("pair", pair) if pair is not None else ("words", question.situation, words_said)
        groups.setdefault(key, []).append(question)
    for left in groups.values():
        while left:
            first = left.pop(0)
            second = next((other for other in left if not set(first.accepted) & set(other.accepted)), None)
            if second is not None:
                left.remove(second)
                yield first, second


def _situation(sample: Sample) -> str:
    return str(sample.extra.get("situation", sample.key))


# --- spoken replies ---


def missing_programs() -> str | None:
    """Why spoken replies cannot be judged on this machine, or None."""
    missing = [program for program in (RECOGNISER, BASELINE_TTS) if shutil.which(program) is None]
    if not missing:
        return None
    return (
        f"spoken replies: expected the programs {RECOGNISER} and {BASELINE_TTS}, "
        f"found no {' and no '.join(missing)}; "
        "install the packages pocketsphinx, pocketsphinx-en-us and flite"
    )


def transcribe(waveform: Tensor | None, rate: int) -> str:
    """ASR transcript by pocketsphinx (general English) of a waveform (samples,); "" of None or silence."""
    if waveform is None or not waveform.numel():
        return ""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "spoken.wav"
        write(path, resample(waveform.float(), rate, SAMPLE_RATE), SAMPLE_RATE)
        return _recognise(path)


def transcribe_baseline(text: str) -> str:
    """ASR transcript of the text as flite's voice slt reads it: the baseline of plain synthesis."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "read.wav"
        _call([BASELINE_TTS, "-voice", "slt", "-t", text, "-o", str(path)])
        return _recognise(path)


def _recognise(path: Path) -> str:
    return " ".join(_call([RECOGNISER, "-infile", str(path), "-logfn", "/dev/null"]).split())


def _call(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise ValueError(
            f"{command[0]}: expected it to succeed, found exit code {done.returncode}: "
            f"{done.stderr.strip()[-300:] or 'no message'}; "
            "check that its voice and model packages are installed"
        )
    return done.stdout
