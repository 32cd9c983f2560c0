"""Recordings to speak to the voice server: 24 kHz PCM, and the onset of speech in it, found by its energy.

Energy finds the onset of speech in clean recordings alone: noise, or a cough before the first
word, would be taken for speech. Of a manifest (of `echat.corpus` or of a data set) those with neither are
taken.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from benchmarks.serving.client import RATE

from echat.audio.waveform import read

STEP = RATE // 100  # samples of 10 ms
LEAD_SECONDS = 0.1  # kept before the onset, so that speech begins as softly as it was spoken
FAINTEST_DB = 30  # below the loudest 10 ms, and still speech
ABOVE_ROOM_DB = 10  # speech is so much louder than the quietest tenth of the recording
END_DB = 20  # below the loudest; what is softer at the end is breath and room
MOST = 40  # recordings of a manifest, evenly spread over it


@dataclass(frozen=True)
class Question:
    """A recording from a little before its first to its last word."""

    pcm: bytes  # 16 bit
    onset: float  # seconds from its first sample to the onset of speech


def onset_and_end(samples: np.ndarray) -> tuple[int, int]:
    """Of samples (n,): the first of the speech, and the one behind the last.

    Speech begins with the first 10 ms that are less than 30 dB below the loudest and 10 dB louder than the
    room, if 30 of the next 50 ms are so too: a click is no onset.
    """
    power = (samples[: len(samples) // STEP * STEP].reshape(-1, STEP) ** 2).mean(1)
    level = 10 * np.log10(power + 1e-12)
    level -= level.max()
    loud = level > max(-FAINTEST_DB, np.percentile(level, 10) + ABOVE_ROOM_DB)
    onsets = [place for place in np.flatnonzero(loud) if loud[place : place + 5].sum() >= 3]
    begin = onsets[0] if onsets else 0
    return int(begin) * STEP, int(np.flatnonzero(level > -END_DB)[-1] + 1) * STEP


def question(path: Path) -> Question:
    waveform, _ = read(str(path), RATE)
    samples = waveform.numpy()
    begin, end = onset_and_end(samples)
    first = max(0, begin - int(LEAD_SECONDS * RATE))
    pcm = np.clip(np.round(samples[first:end] * 32767), -32768, 32767)
    return Question(pcm.astype("<i2").tobytes(), (begin - first) / RATE)


def questions(paths: Iterable[Path]) -> list[Question]:
    """Of recordings, and of the clean ones of manifests (.jsonl)."""
    return [question(wav) for path in paths for wav in (_clean(path) if path.suffix == ".jsonl" else [path])]


def _clean(manifest: Path) -> list[Path]:
    rows = [json.loads(line) for line in manifest.read_text(encoding="utf-8").splitlines()]
    clean = [row for row in rows if row.get("noise") is None and row.get("sound_event") is None]
    return [manifest.parent / row["audio"] for row in clean[:: max(1, len(clean) // MOST)][:MOST]]
