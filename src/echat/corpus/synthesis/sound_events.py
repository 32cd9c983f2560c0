"""Sound events of a speaker (cough, laugh, sigh, sneeze): synthesised by filters, or cut from recordings.

Synthetic events vary in length, repetition, spectrum and pitch, and follow the vocal tract of the speaker: a
child's cough is higher than its grandfather's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from echat.audio import waveform
from echat.audio.features import SAMPLE_RATE
from echat.corpus.synthesis.prosody import SpeakerTraits

REAL_SHARE = 0.3  # of the events of which recordings are given
POSITIONS = {"before": 0.45, "after": 0.45, "between": 0.10}
# Peak of the sound relative to the peak of the speech, decibels.
_LEVEL_DB = {
    "cough": (-2.0, 4.0), "laugh": (-4.0, 2.0), "sigh": (-11.0, -5.0), "sneeze": (0.0, 5.0),
    "throat_clearing": (-6.0, 0.0),
}  # fmt: skip
_LONGEST_CLIP_SECONDS = 1.8


@dataclass(frozen=True)
class MixedEvent:
    """Speech with a sound event "before", "after" or "between" its words; `is_real`: a recording of one."""

    waveform: np.ndarray
    position: str
    is_real: bool


def synthesize_event(name: str, speaker: SpeakerTraits, rng: np.random.Generator) -> np.ndarray:
    """A synthetic sound of unit peak at 16 kHz."""
    if name not in _MAKERS:
        raise ValueError(f"sound event: expected one of {', '.join(_MAKERS)}, found {name!r}")
    wave = _MAKERS[name](speaker, rng)
    wave = wave * _edges(len(wave), 0.008)
    return np.asarray(wave / np.abs(wave).max(), dtype=np.float32)


def mix_event(
    speech: np.ndarray,
    name: str,
    speaker: SpeakerTraits,
    rng: np.random.Generator,
    clips: dict[str, list[Path]],
    real_share: float = REAL_SHARE,
) -> MixedEvent:
    """The speech with a sound before, after or between its words, at a natural level.

    `real_share` of the sounds are recordings where there are some; of `RECORDED_EVENTS` all are.
    """
    is_real = bool(clips.get(name)) and (name in RECORDED_EVENTS or rng.random() < real_share)
    if is_real:
        sound = _clip(clips[name][int(rng.integers(len(clips[name])))])
    else:
        sound = synthesize_event(name, speaker, rng)
    peak = max(0.08, float(np.percentile(np.abs(speech), 99.7)))  # a cough is loud after a whisper, too
    sound = sound * (peak * 10.0 ** (rng.uniform(*_LEVEL_DB[name]) / 20.0))
    gap = np.zeros(int(rng.uniform(0.06, 0.25) * SAMPLE_RATE), dtype=np.float32)
    position = str(rng.choice(list(POSITIONS), p=list(POSITIONS.values())))
    if position == "before":
        parts = [sound, gap, speech]
    elif position == "after":
        parts = [speech, gap, sound]
    else:
        at = _quietest(speech)
        parts = [speech[:at], gap, sound, gap, speech[at:]]
    return MixedEvent(np.concatenate(parts).astype(np.float32), position, is_real)


@cache
def _clip(path: Path) -> np.ndarray:
    """The loudest stretch of a clip, without the silence around it, of unit peak."""
    samples = waveform.read(path, SAMPLE_RATE)[0].numpy()
    hop = SAMPLE_RATE // 100
    power = np.sqrt(np.convolve(samples**2, np.ones(4 * hop) / (4 * hop), mode="same"))[::hop]
    loud = np.flatnonzero(power > 0.06 * power.max())
    peak = int(np.argmax(power))
    limit = int(_LONGEST_CLIP_SECONDS * 100)
    near = loud[(loud > peak - limit // 2) & (loud < peak + limit // 2)]
    cut = samples[max(0, near[0] - 4) * hop : (near[-1] + 6) * hop]
    cut = cut * _edges(len(cut), 0.02)
    return np.asarray(cut / np.abs(cut).max(), dtype=np.float32)


def _quietest(speech: np.ndarray) -> int:
    """The sample in the middle half of the speech where it is most silent for 40 ms."""
    width = SAMPLE_RATE // 25
    power = np.convolve(speech.astype(np.float64) ** 2, np.ones(width), mode="same")
    low, high = len(speech) // 4, 3 * len(speech) // 4
    return low + int(np.argmin(power[low:high])) if high > low else len(speech) // 2


def _cough(speaker: SpeakerTraits, rng: np.random.Generator) -> np.ndarray:
    """One to three bursts: a hard onset, a decaying rush through the throat, often a voiced end."""
    formants = [f * speaker.tract * rng.uniform(0.9, 1.1) for f in (620.0, 1500.0, 2600.0, 3900.0)]
    bursts = []
    strength = 1.0
    for _ in range(int(rng.choice([1, 2, 3], p=[0.25, 0.5, 0.25]))):
        rush = _resonate(rng.standard_normal(_samples(rng.uniform(0.16, 0.30))), formants, 220.0)
        rush *= _decay(len(rush), rng.uniform(0.05, 0.09))
        onset = rng.standard_normal(len(rush)) * _decay(len(rush), 0.012)
        burst = _unit(rush) + 0.5 * _unit(onset)
        if rng.random() < 0.6:
            f0 = np.linspace(1.25, 0.7, len(rush)) * max(110.0, speaker.f0_hz)
            tail = _resonate(_pulses(f0, 0.04, rng), formants, 120.0)
            burst += 0.6 * _unit(tail * _bump(len(rush), 0.35))
        bursts += [strength * burst, np.zeros(_samples(rng.uniform(0.08, 0.2)))]
        strength *= rng.uniform(0.6, 0.95)
    return np.concatenate(bursts[:-1])


def _laugh(speaker: SpeakerTraits, rng: np.random.Generator) -> np.ndarray:
    """A run of "ha": a breath and a short open vowel, four to six per second, falling in pitch and level."""
    formants = [f * speaker.tract for f in (rng.uniform(680, 820), rng.uniform(1200, 1400), 2600.0, 3700.0)]
    f0 = min(520.0, speaker.f0_hz * rng.uniform(1.25, 1.7))
    period, strength = 1.0 / rng.uniform(4.2, 6.0), 1.0
    parts = []
    for _ in range(int(rng.integers(4, 8))):
        breath = _resonate(rng.standard_normal(_samples(period * 0.35)), formants, 300.0)
        vowel_f0 = np.linspace(1.06, 0.92, _samples(period * 0.65)) * f0
        vowel = _resonate(_pulses(vowel_f0, 0.03, rng), formants, 110.0) * _bump(len(vowel_f0), 0.3)
        breath *= _bump(len(breath), 0.6)
        parts += [strength * 0.25 * _unit(breath), strength * _unit(vowel)]
        f0 *= rng.uniform(0.91, 0.98)
        strength *= rng.uniform(0.82, 0.97)
    return np.concatenate(parts)


def _sigh(speaker: SpeakerTraits, rng: np.random.Generator) -> np.ndarray:
    """A long breath out that becomes darker and softer, at times with a voiced beginning."""
    length = _samples(rng.uniform(0.8, 1.3))
    noise = rng.standard_normal(length)
    bright = _resonate(noise, [f * speaker.tract for f in (900.0, 1700.0, 2900.0)], 450.0)
    dark = _resonate(noise, [f * speaker.tract for f in (550.0, 1100.0, 2300.0)], 350.0)
    fall = np.linspace(0.0, 1.0, length)
    breath = _unit(bright) * (1.0 - fall) + _unit(dark) * fall
    breath *= _bump(length, rng.uniform(0.15, 0.25))
    if rng.random() < 0.5:
        f0 = np.linspace(1.15, 0.75, length) * speaker.f0_hz
        voice = _resonate(_pulses(f0, 0.05, rng), [f * speaker.tract for f in (600.0, 1150.0, 2500.0)], 130.0)
        breath += rng.uniform(0.3, 0.7) * _unit(voice * _bump(length, 0.12) ** 2)
    return breath


def _sneeze(speaker: SpeakerTraits, rng: np.random.Generator) -> np.ndarray:
    """A gasp in ("ah"), a short hold, and a burst ("choo") that hisses and then darkens."""
    gasp = _resonate(
        rng.standard_normal(_samples(rng.uniform(0.2, 0.4))), [1000.0 * speaker.tract, 2000.0, 3300.0], 400.0
    )
    gasp *= _bump(len(gasp), 0.8)
    hold = np.zeros(_samples(rng.uniform(0.05, 0.13)))
    hiss = _resonate(rng.standard_normal(_samples(rng.uniform(0.10, 0.18))), [3000.0, 4500.0, 6200.0], 1400.0)
    hiss *= _decay(len(hiss), 0.09)
    length = _samples(rng.uniform(0.16, 0.28))
    f0 = np.linspace(1.6, 0.9, length) * speaker.f0_hz
    formants = [f * speaker.tract for f in (420.0, 1250.0, 2500.0)]
    end = 0.7 * _unit(_resonate(_pulses(f0, 0.05, rng), formants, 140.0))
    end += 0.5 * _unit(_resonate(rng.standard_normal(length), formants, 300.0))
    end *= _decay(length, 0.08)
    return np.concatenate([rng.uniform(0.08, 0.2) * _unit(gasp), hold, 1.1 * _unit(hiss), 0.7 * _unit(end)])


_MAKERS: dict[str, Callable[[SpeakerTraits, np.random.Generator], np.ndarray]] = {
    "cough": _cough,
    "laugh": _laugh,
    "sigh": _sigh,
    "sneeze": _sneeze,
}
EVENTS = tuple(_MAKERS)
RECORDED_EVENTS = ("throat_clearing",)  # cannot be synthesised


def _samples(seconds: float) -> int:
    return max(16, int(seconds * SAMPLE_RATE))


def _unit(wave: np.ndarray) -> np.ndarray:
    return wave / (np.abs(wave).max() + 1e-9)


def _decay(length: int, seconds: float) -> np.ndarray:
    return np.exp(-np.arange(length) / (seconds * SAMPLE_RATE))


def _bump(length: int, peak: float) -> np.ndarray:
    """A window that rises from 0 to 1 at `peak` (share of the length) and falls to 0, both as a sine."""
    position = np.linspace(0.0, 1.0, length)
    rise = np.clip(position / peak, 0.0, 1.0)
    fall = np.clip((1.0 - position) / (1.0 - peak), 0.0, 1.0)
    return np.sin(np.pi / 2 * np.minimum(rise, fall))


def _edges(length: int, seconds: float) -> np.ndarray:
    """A window of ones with a short fade at both ends, so that nothing clicks."""
    ramp = np.arange(length) / (seconds * SAMPLE_RATE)
    return np.minimum(1.0, np.minimum(ramp, ramp[::-1]))


def _pulses(f0: np.ndarray, jitter: float, rng: np.random.Generator) -> np.ndarray:
    """One pulse per period of the f0 track, with a little breath in between."""
    steps = f0 * (1.0 + jitter * np.repeat(rng.standard_normal(len(f0) // 200 + 1), 200)[: len(f0)])
    phase = np.cumsum(np.clip(steps, 50.0, 700.0)) / SAMPLE_RATE
    train = np.diff(np.floor(phase), prepend=0.0)
    return train + 0.02 * rng.standard_normal(len(f0))


def _resonate(source: np.ndarray, formants: list[float], bandwidth: float) -> np.ndarray:
    """The source through parallel resonators, each formant 5 dB below the one before."""
    from scipy.signal import lfilter

    out = np.zeros(len(source))
    for k, hertz in enumerate(min(f, 0.47 * SAMPLE_RATE) for f in formants):
        radius = np.exp(-np.pi * bandwidth * (1.0 + 0.3 * k) / SAMPLE_RATE)
        angle = 2 * np.pi * hertz / SAMPLE_RATE
        part = lfilter([1.0 - radius], [1.0, -2.0 * radius * np.cos(angle), radius**2], source)
        out += part / (np.std(part) + 1e-12) * 10.0 ** (-5.0 * k / 20.0)
    return out
