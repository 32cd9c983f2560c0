"""Audio files as mono waveforms: reading with resampling and checks, and writing."""

from __future__ import annotations

import math
import os
import stat
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from echat.audio.errors import AudioError
from echat.audio.file_decoding import decode, too_long
from echat.audio.resampling import resample

MIN_SECONDS = 0.025  # one analysis window
MAX_SECONDS = 600.0
LOUDEST = 8.0  # +18 dB over full scale; floats beyond are integers that were not divided
_FULL_SCALES = (2.0**7, 2.0**15, 2.0**23, 2.0**31)
_SUBTYPES = {16: "PCM_16", 32: "FLOAT"}

Source = str | os.PathLike[str] | bytes


def read(
    source: Source,
    rate: int | None = None,
    *,
    min_seconds: float = MIN_SECONDS,
    max_seconds: float = MAX_SECONDS,
    allow_silence: bool = False,
    name: str | None = None,
    start_seconds: float | None = None,
    end_seconds: float | None = None,
) -> tuple[Tensor, int]:
    """Read a sound file (or its bytes) as mono float32 ``(samples,)`` in [-1, 1].

    Wav, flac, ogg, opus and mp3 are always read; what browsers and phones record (webm, m4a, 3gp, amr, aac)
    where PyAV or ffmpeg is installed. Integer samples are divided by their full scale (16 bit: 32768),
    channels are averaged (of channels that cancel each other the loudest is taken), and then the waveform is
    resampled to ``rate`` (None keeps the rate of the file). Raises :class:`AudioError` for audio that
    :func:`check` refuses. ``name`` stands for the source in messages. With ``start_seconds`` or
    ``end_seconds`` nothing outside of them is decoded or checked.
    """
    where = name or ("audio bytes" if isinstance(source, bytes) else str(source))
    data = source if isinstance(source, bytes) else file_bytes(Path(source))
    samples, file_rate = decode(data, where, max_seconds, (start_seconds or 0.0, end_seconds))
    waveform = in_full_scale(torch.from_numpy(samples))
    check(waveform, file_rate, where, min_seconds, max_seconds, allow_silence)
    if rate is None or rate == file_rate:
        return waveform, file_rate
    return resample(waveform, file_rate, rate), rate


def in_full_scale(waveform: Tensor) -> Tensor:
    """Floats that hold the numbers of 8, 16, 24 or 32 bit integers in [-1, 1]; others as they are."""
    low, high = map(float, torch.aminmax(waveform)) if waveform.numel() else (0.0, 0.0)
    peak = max(-low, high)
    if not LOUDEST < peak < math.inf:
        return waveform
    return waveform / next((scale for scale in _FULL_SCALES if peak <= scale), peak)


def check(
    waveform: Tensor,
    rate: int,
    where: str,
    min_seconds: float = MIN_SECONDS,
    max_seconds: float = MAX_SECONDS,
    allow_silence: bool = False,
) -> None:
    """Refuse a mono waveform that is too short, too long, not finite, or digitally silent."""
    seconds = waveform.shape[-1] / rate
    if seconds < min_seconds:
        raise AudioError(
            f"{where}: expected at least {min_seconds * 1000:g} ms of sound, found {seconds * 1000:g} ms "
            f"({waveform.shape[-1]} samples at {rate} Hz); record for longer",
            "short" if seconds else "empty",
        )
    if seconds > max_seconds:
        raise too_long(where, seconds, max_seconds)
    low, high = map(float, torch.aminmax(waveform)) if waveform.numel() else (0.0, 0.0)  # one pass, NaN stays
    if not (math.isfinite(low) and math.isfinite(high)):
        first = int(torch.nonzero(~torch.isfinite(waveform))[0])
        raise AudioError(
            f"{where}: expected finite samples, found {waveform[first].item()} at sample {first}; "
            "export the sound again, the program that wrote it divided by zero",
            "not finite",
        )
    if not allow_silence and low == high == 0.0:
        raise AudioError(
            f"{where}: expected sound, found {seconds:.2f} s of digital silence (every sample is 0); "
            "check that the microphone is connected and not muted",
            "silent",
        )


def write(path: str | os.PathLike[str], waveform: Tensor | np.ndarray, rate: int, bits: int = 16) -> None:
    """Write a mono waveform in [-1, 1] as wav, flac or ogg (by the suffix), whole or not at all.

    ``bits`` is 16 (samples beyond [-1, 1] are clipped) or, for wav, 32 (float, as they are).
    """
    import soundfile

    target = Path(path)
    kind = target.suffix.lower().lstrip(".")
    if kind not in ("wav", "flac", "ogg") or bits not in _SUBTYPES or (bits == 32 and kind != "wav"):
        raise AudioError(
            f"{target}: expected a name ending in .wav (16 or 32 bit), .flac or .ogg (16 bit), "
            f"found '{target.suffix}' with {bits} bit; rename the output or drop the bit depth"
        )
    samples = np.asarray(torch.as_tensor(waveform).detach().cpu().float().numpy())
    if samples.ndim != 1:
        raise AudioError(f"{target}: expected a mono waveform (samples,), found shape {samples.shape}")
    if not np.isfinite(samples).all():
        raise AudioError(f"{target}: expected finite samples, found NaN or infinity; nothing was written")
    if not target.parent.is_dir():
        raise AudioError(f"{target}: expected an existing folder, found no {target.parent}; create it")
    subtype = "VORBIS" if kind == "ogg" else _SUBTYPES[bits]
    data = to_int16(samples) if subtype == "PCM_16" else samples
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        soundfile.write(temporary, data, rate, subtype=subtype, format=kind.upper())
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def to_int16(waveform: Tensor | np.ndarray) -> np.ndarray:
    """Samples in [-1, 1] as 16-bit PCM: int16, full scale 32768, rounded and clipped."""
    samples = waveform.detach().cpu().float().numpy() if isinstance(waveform, Tensor) else waveform
    return np.clip(np.round(samples * 32768.0), -32768, 32767).astype(np.int16)


def file_bytes(path: Path) -> bytes:
    """What a file holds. AudioError for a folder, and for a pipe or device, which might never end."""
    try:
        mode = os.stat(path).st_mode
        if stat.S_ISDIR(mode):
            raise AudioError(
                f"{path}: expected an audio file, found a folder; name a file inside it", "missing"
            )
        if not stat.S_ISREG(mode):
            raise AudioError(
                f"{path}: expected an audio file, found a pipe or a device; write the sound to a file first",
                "unreadable",
            )
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise AudioError(
            f"{path}: expected an audio file, found nothing there; check the path", "missing"
        ) from error
    except OSError as error:
        raise AudioError(
            f"{path}: expected a readable file, found: {error.strerror}; check permissions", "unreadable"
        ) from error
