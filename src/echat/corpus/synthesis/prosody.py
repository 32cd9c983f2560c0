"""Prosody and speaker transformation with the WORLD vocoder: neutral speech becomes emotional, young or old.

WORLD analyses speech into f0, spectral envelope and aperiodicity; `apply_prosody` modifies them by a
`SpeakerTraits` (pitch, vocal tract length) and a `Prosody` (emotion) and synthesises speech again. Pitch
contours are set in absolute terms (semitones of spread, slope over the sentence), not relative to the source,
so that an emotion sounds alike in every voice.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from echat.audio.features import SAMPLE_RATE

FRAME_MS = 5.0
_LOWEST_F0, _HIGHEST_F0 = 60.0, 500.0
_SOFTEST, _LOUDEST_F0 = 55.0, 620.0  # limits of the rendered f0, Hz
_TRACT = {"male": 1.0, "female": 1.16}  # formants of a source voice relative to a male one
LEVEL = 0.06  # root mean square of a neutral sentence
_TILT_CENTRE_HZ = 800.0


@dataclass(frozen=True)
class SpeakerTraits:
    """Pitch and vocal tract length of a speaker (formants relative to a male adult)."""

    f0_hz: float
    tract: float
    is_old: bool


@dataclass(frozen=True)
class Prosody:
    """Prosody of one sentence; the defaults are a calm, even reading."""

    pitch: float = 1.0  # factor on the f0 of the speaker
    pitch_std: float = 1.8  # standard deviation of the melody, semitones
    pitch_slope: float = 0.0  # change of pitch over the sentence, semitones
    final_rise: float = 0.0  # over the last half, semitones
    lilt: float = 0.0  # depth of a swing of the melody, semitones
    lilt_hz: float = 2.0
    tremor: float = 0.0  # depth of a shake of the f0, semitones
    tremor_hz: float = 7.0
    tremor_db: float = 0.0  # depth of the same shake in loudness
    jitter: float = 0.05  # random f0 per frame, semitones
    roughness: float = 0.0  # depth of a 70 Hz growl in loudness, 0..1
    breathiness: float = 0.03  # share of noise in voiced sound, 0..1
    spectral_tilt: float = 0.0  # brightness, dB per octave
    formants: float = 1.0  # a smile raises them
    tempo: float = 1.0
    loudness_db: float = 0.0


def sample_speaker(age: str, gender: str | None, rng: np.random.Generator) -> SpeakerTraits:
    """Random traits of a speaker of that age and gender; children have no gender here."""
    if age == "child":
        return SpeakerTraits(rng.uniform(262.0, 330.0), rng.uniform(1.22, 1.31), False)
    is_old = age == "old"
    if gender == "female":
        f0, tract = rng.uniform(172.0, 228.0), rng.uniform(1.10, 1.19)
    else:
        f0, tract = rng.uniform(86.0, 134.0), rng.uniform(0.94, 1.03)
    return SpeakerTraits(f0, tract * (0.95 if is_old else 1.0), is_old)


def own_traits(speech: np.ndarray, gender: str, age: str, rng: np.random.Generator) -> SpeakerTraits:
    """Traits of a natural voice at another age: an adult keeps pitch and vocal tract, a child is sampled."""
    if age == "child":
        return sample_speaker(age, None, rng)
    f0 = _f0(speech.astype(np.float64))[0]
    own = float(np.median(f0[f0 > 0])) if f0.any() else 150.0
    is_old = age == "old"
    return SpeakerTraits(own, _TRACT[gender] * (0.95 if is_old else 1.0), is_old)


def sample_prosody(
    emotion: str, speaker: SpeakerTraits, rng: np.random.Generator, is_natural: bool = False
) -> Prosody:
    """The prosody of an emotion, each parameter uniform within its range.

    A natural voice (`is_natural`) has more melody of its own, and needs less roughness and breath.
    """
    if emotion not in _PROSODY_RANGES:
        raise ValueError(f"emotion: expected one of {', '.join(_PROSODY_RANGES)}, found {emotion!r}")
    ranges = _PROSODY_RANGES[emotion] | (_NATURAL_RANGES[emotion] if is_natural else {})
    prosody = Prosody(**{name: float(rng.uniform(*limits)) for name, limits in ranges.items()})
    return _aged(prosody, rng) if speaker.is_old else prosody


_PROSODY_RANGES: dict[str, dict[str, tuple[float, float]]] = {
    "neutral": dict(
        pitch=(0.97, 1.03), pitch_std=(1.5, 2.0), pitch_slope=(-1.5, -0.5), tempo=(0.97, 1.05),
        loudness_db=(-1.0, 1.0),
    ),
    "happy": dict(
        pitch=(1.13, 1.22), pitch_std=(3.0, 3.8), pitch_slope=(-0.5, 1.0), lilt=(2.2, 3.2),
        lilt_hz=(2.2, 3.0), spectral_tilt=(0.8, 1.6),
        formants=(1.02, 1.05), tempo=(1.12, 1.22), loudness_db=(1.0, 3.0),
    ),
    "sad": dict(
        pitch=(0.86, 0.92), pitch_std=(0.4, 0.7), pitch_slope=(-4.0, -2.5), breathiness=(0.06, 0.12),
        spectral_tilt=(-2.6, -1.6), tempo=(0.82, 0.90), loudness_db=(-7.0, -4.5),
    ),
    "angry": dict(
        pitch=(1.00, 1.08), pitch_std=(2.4, 3.2), pitch_slope=(-5.0, -3.5), jitter=(0.35, 0.55),
        roughness=(0.35, 0.55), spectral_tilt=(2.8, 4.0), tempo=(1.06, 1.16), loudness_db=(5.0, 7.5),
    ),
    "fear": dict(
        pitch=(1.15, 1.23), pitch_std=(1.0, 1.5), pitch_slope=(0.0, 1.0), tremor=(0.9, 1.3),
        tremor_hz=(6.8, 8.2),
        tremor_db=(2.0, 3.5), breathiness=(0.28, 0.40), spectral_tilt=(-0.8, 0.2), tempo=(1.06, 1.16),
        loudness_db=(-4.5, -2.5),
    ),
    "surprise": dict(
        pitch=(1.14, 1.22), pitch_std=(2.2, 2.8), pitch_slope=(-1.0, 0.0), final_rise=(11.0, 14.0),
        spectral_tilt=(0.4, 1.4), tempo=(0.92, 1.00), loudness_db=(1.0, 3.0),
    ),
}  # fmt: skip
_NATURAL_RANGES: dict[str, dict[str, tuple[float, float]]] = {
    "neutral": dict(pitch_std=(3.0, 3.8)),
    "happy": dict(pitch_std=(4.2, 5.2), lilt=(1.2, 2.0)),
    "sad": dict(pitch_std=(1.1, 1.7)),
    "angry": dict(
        pitch_std=(3.6, 4.6), jitter=(0.12, 0.25), roughness=(0.12, 0.25), spectral_tilt=(2.0, 3.0)
    ),
    "fear": dict(pitch_std=(2.0, 2.8), breathiness=(0.10, 0.18), spectral_tilt=(0.0, 0.8)),
    "surprise": dict(pitch_std=(3.6, 4.4), final_rise=(8.0, 11.0)),
}  # fmt: skip
EMOTIONS = tuple(_PROSODY_RANGES)


def _aged(prosody: Prosody, rng: np.random.Generator) -> Prosody:
    """The prosody of an old speaker: slow, hoarse, with a tremor of four to five Hz in pitch and loudness."""
    return replace(
        prosody,
        tempo=prosody.tempo * rng.uniform(0.84, 0.91),
        tremor=max(prosody.tremor, rng.uniform(1.1, 1.6)),
        tremor_hz=rng.uniform(4.0, 5.0) if not prosody.tremor else prosody.tremor_hz,
        tremor_db=rng.uniform(4.0, 6.0),
        jitter=prosody.jitter + rng.uniform(0.3, 0.45),
        breathiness=min(0.5, prosody.breathiness + rng.uniform(0.12, 0.20)),
        spectral_tilt=prosody.spectral_tilt - rng.uniform(0.8, 1.4),
    )


def apply_prosody(
    reading: np.ndarray,
    source_gender: str,
    speaker: SpeakerTraits,
    prosody: Prosody,
    rng: np.random.Generator,
) -> np.ndarray:
    """16 kHz speech with another speaker and prosody: float32 samples at RMS `LEVEL` and `loudness_db`."""
    import pyworld

    samples = reading.astype(np.float64)
    f0, times = _f0(samples)
    envelope = pyworld.cheaptrick(samples, f0, times, SAMPLE_RATE)  # (frames, bins)
    envelope = _reshape(
        envelope, speaker.tract * prosody.formants / _TRACT[source_gender], prosody.spectral_tilt
    )
    f0_contour = _f0_contour(f0, speaker, prosody, rng)
    wave = pyworld.synthesize(
        f0_contour,
        envelope,
        _aperiodicity(f0, envelope.shape[1], prosody.breathiness),
        SAMPLE_RATE,
        FRAME_MS / prosody.tempo,
    )
    return _loudness(wave, prosody, rng)


def _f0(samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The f0 track in Hz, 0 where unvoiced, and the times of its frames in seconds."""
    import pyworld

    f0, times = pyworld.dio(
        samples, SAMPLE_RATE, f0_floor=_LOWEST_F0, f0_ceil=_HIGHEST_F0, frame_period=FRAME_MS, speed=2
    )
    return pyworld.stonemask(samples, f0, times, SAMPLE_RATE), times


def _f0_contour(
    f0: np.ndarray, speaker: SpeakerTraits, prosody: Prosody, rng: np.random.Generator
) -> np.ndarray:
    """The f0 track to synthesise, 0 where unvoiced."""
    voiced = f0 > 0
    if voiced.sum() < 4:
        return np.zeros_like(f0)
    frames = np.arange(len(f0))
    semitones = 12.0 * np.log2(np.interp(frames, frames[voiced], f0[voiced]))
    semitones -= np.median(semitones[voiced])
    semitones = np.clip(semitones, -8.0, 8.0)  # octave errors of the tracker
    slope, offset = np.polyfit(frames[voiced], semitones[voiced], 1)
    semitones -= slope * frames + offset  # the slope of the source is replaced by that of the prosody
    semitones *= min(3.5, prosody.pitch_std / max(0.3, float(np.std(semitones[voiced]))))
    first, last = frames[voiced][0], frames[voiced][-1]
    progress = np.clip((frames - first) / max(1, last - first), 0.0, 1.0)
    seconds = frames * FRAME_MS / 1000.0 / prosody.tempo
    semitones += prosody.pitch_slope * (progress - 0.5)
    semitones += prosody.final_rise * np.clip((progress - 0.55) / 0.40, 0.0, 1.0)
    semitones += prosody.lilt * np.sin(2 * np.pi * (prosody.lilt_hz * seconds + rng.random()))
    semitones += prosody.tremor * np.sin(2 * np.pi * prosody.tremor_hz * seconds)
    semitones += prosody.jitter * rng.standard_normal(len(f0))
    hertz = speaker.f0_hz * prosody.pitch * 2.0 ** (semitones / 12.0)
    return np.where(voiced, np.clip(hertz, _SOFTEST, _LOUDEST_F0), 0.0)


def _reshape(envelope: np.ndarray, formants: float, spectral_tilt: float) -> np.ndarray:
    """The envelope with its formants scaled by a factor and a spectral tilt around 800 Hz."""
    bins = envelope.shape[1]
    source = np.minimum(np.arange(bins) / formants, bins - 1)
    low = source.astype(int)
    share = source - low
    moved = envelope[:, low] * (1.0 - share) + envelope[:, np.minimum(low + 1, bins - 1)] * share
    hertz = np.maximum(np.arange(bins) * SAMPLE_RATE / 2 / (bins - 1), 100.0)
    decibels = np.clip(spectral_tilt * np.log2(hertz / _TILT_CENTRE_HZ), -14.0, 12.0)
    return np.ascontiguousarray(moved * 10.0 ** (decibels / 10.0))


def _aperiodicity(f0: np.ndarray, bins: int, breathiness: float) -> np.ndarray:
    """Aperiodicity by a fixed rule that grows with frequency; measuring it would double the time."""
    hertz = np.arange(bins) * SAMPLE_RATE / 2 / (bins - 1)
    natural = 0.55 / (1.0 + np.exp(-(hertz - 4500.0) / 900.0))
    voiced = breathiness + (1.0 - breathiness) * natural
    return np.where((f0 > 0)[:, None], np.clip(voiced, 0.001, 0.97)[None], 0.999)


def _loudness(wave: np.ndarray, prosody: Prosody, rng: np.random.Generator) -> np.ndarray:
    seconds = np.arange(len(wave)) / SAMPLE_RATE
    if prosody.tremor_db:
        shake = np.sin(2 * np.pi * prosody.tremor_hz * seconds + 2 * np.pi * rng.random())
        wave = wave * 10.0 ** (prosody.tremor_db / 2 * shake / 20.0)
    if prosody.roughness:
        wave = wave * (1.0 + prosody.roughness * np.sin(2 * np.pi * rng.uniform(62.0, 80.0) * seconds))
    wave = wave * (LEVEL / (np.sqrt(np.mean(wave**2)) + 1e-9))
    loud = wave * 10.0 ** (prosody.loudness_db / 20.0)
    return np.tanh(loud).astype(np.float32)  # limits what is louder than full scale
