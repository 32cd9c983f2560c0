"""Reading and writing sound files, mono, at any rate; saying what is wrong with a file."""

from __future__ import annotations

import io
import math
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from echat.audio.errors import AudioError
from echat.audio.plain_wav import PlainWav
from echat.audio.resampling import resample

MIN_SECONDS = 0.025  # one analysis window
MAX_SECONDS = 600.0
RATES = (1000, 768_000)  # Hz that a header may announce; nothing is recorded outside
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
    """Read a wav, flac, ogg, opus or mp3 file (or its bytes) as mono float32 ``(samples,)`` in [-1, 1].

    Integer samples are divided by their full scale (16 bit: 32768), channels are averaged, and then the
    waveform is resampled to ``rate`` (None keeps the rate of the file). Raises :class:`AudioError` for
    anything that cannot be listened to: see :func:`check`. ``name`` stands for the source in messages. Of a
    stretch from ``start_seconds`` to ``end_seconds`` nothing else is decoded or checked.
    """
    where = name or ("audio bytes" if isinstance(source, bytes) else str(source))
    data = source if isinstance(source, bytes) else _file_bytes(Path(source))
    samples, file_rate = _decode(data, where, max_seconds, (start_seconds or 0.0, end_seconds))
    waveform = torch.from_numpy(samples)
    check(waveform, file_rate, where, min_seconds, max_seconds, allow_silence)
    if rate is None or rate == file_rate:
        return waveform, file_rate
    return resample(waveform, file_rate, rate), rate


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
        raise _too_long(where, seconds, max_seconds)
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
    data: np.ndarray = samples
    if subtype == "PCM_16":
        data = np.clip(np.round(samples * 32768.0), -32768, 32767).astype(np.int16)
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        soundfile.write(temporary, data, rate, subtype=subtype, format=kind.upper())
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def _file_bytes(path: Path) -> bytes:
    if path.is_dir():
        raise AudioError(f"{path}: expected an audio file, found a folder; name a file inside it", "missing")
    if not path.exists():
        raise AudioError(f"{path}: expected an audio file, found nothing there; check the path", "missing")
    try:
        return path.read_bytes()
    except OSError as error:
        raise AudioError(
            f"{path}: expected a readable file, found: {error.strerror}; check permissions", "unreadable"
        ) from error


def _decode(
    data: bytes, where: str, max_seconds: float, stretch: tuple[float, float | None]
) -> tuple[np.ndarray, int]:
    """Mono float32 samples and their rate."""
    import soundfile

    if not data:
        raise AudioError(
            f"{where}: expected an audio file, found an empty one (0 bytes); record it again", "empty"
        )
    _look_into_container(data, where)
    try:
        with PlainWav.of(data) or soundfile.SoundFile(io.BytesIO(data)) as sound:
            _refuse_impossible_rate(sound.samplerate, where)
            rate = sound.samplerate
            begin = min(round(stretch[0] * rate), sound.frames)
            end = sound.frames if stretch[1] is None else min(round(stretch[1] * rate), sound.frames)
            announced = max(0, end - begin)
            if max_seconds * rate < announced < 2**62:
                raise _too_long(where, announced / rate, max_seconds)
            if begin:
                sound.seek(begin)
            samples = _decode_blocks(sound, where, max_seconds, announced)
    except soundfile.LibsndfileError as error:
        raise AudioError(_undecodable(data, where, error), "undecodable") from error
    if 0 < announced < 2**62 and len(samples) < announced and not _is_mp3(data):
        raise _truncated(where, f"{announced} samples", f"{len(samples)} samples")
    return samples, rate


def _refuse_impossible_rate(rate: int, where: str) -> None:
    low, high = RATES
    if not low <= rate <= high:
        raise AudioError(
            f"{where}: expected a sample rate of {low} to {high} Hz in the header, found {rate} Hz; "
            "export the sound again with its true rate",
            "rate",
        )


def _decode_blocks(sound: Any, where: str, max_seconds: float, most: int) -> np.ndarray:
    """Decode minute by minute, so that a file of unknown length cannot fill the memory; ``most`` samples."""
    blocks: list[np.ndarray] = []
    total = 0
    while total < most:
        count = min(60 * sound.samplerate, most - total)
        block = sound.read(count, dtype="float32", always_2d=True)  # (samples, channels)
        if not len(block):
            break
        blocks.append(block[:, 0] if block.shape[1] == 1 else block.mean(axis=1))
        total += len(block)
        if total > max_seconds * sound.samplerate:
            raise _too_long(where, total / sound.samplerate, max_seconds)
    return np.ascontiguousarray(np.concatenate(blocks)) if blocks else np.zeros(0, dtype=np.float32)


def _look_into_container(data: bytes, where: str) -> None:
    """The decoder silently shortens a wav or ogg that ends too early and does not tell a wrong rate."""
    if data[:4] == b"RIFF" and data[8:12] == b"WAVE":
        _look_into_wav(data, where)
    elif data[:4] == b"OggS":
        last = data.rfind(b"OggS")
        segments = data[last + 26] if last + 27 <= len(data) else None
        table = data[last + 27 : last + 27 + (segments or 0)]
        end = last + 27 + len(table) + sum(table)
        is_whole = segments is not None and len(table) == segments and end <= len(data)
        if not is_whole or not data[last + 5] & 4:  # flag 4 marks the last page of a stream
            raise _truncated(where, "a last Ogg page marked as the end", f"{len(data)} bytes without it")


def _look_into_wav(data: bytes, where: str) -> None:
    position = 12
    while position + 8 <= len(data):
        name, size = data[position : position + 4], struct.unpack_from("<I", data, position + 4)[0]
        body = position + 8
        if name == b"fmt " and body + 8 <= len(data):
            _refuse_impossible_rate(struct.unpack_from("<I", data, body + 4)[0], where)
        if name == b"data":
            is_streamed = size >= 0x7FFF_F000 or size == 0  # written by a pipe that could not know the length
            if not is_streamed and body + size > len(data):
                raise _truncated(where, f"{size} bytes of sound", f"{len(data) - body}")
            return
        position = body + size + size % 2
    raise _truncated(where, "a wav file with a data chunk", f"{len(data)} bytes without one")


def _undecodable(data: bytes, where: str, error: Exception) -> str:
    head = data[:512]
    is_text = b"\0" not in head and all(byte >= 32 or byte in b"\t\r\n\f" for byte in head)
    reason = getattr(error, "error_string", str(error)).rstrip(".")
    found = "text" if is_text else f"{len(data)} bytes that do not decode ({reason})"
    return (
        f"{where}: expected an audio file (wav, flac, ogg, opus or mp3), found {found}; "
        "convert it to wav, or check that the right file was named"
    )


def _is_mp3(data: bytes) -> bool:
    return data[:3] == b"ID3" or (data[0] == 0xFF and data[1:2] >= b"\xe0")


def _truncated(where: str, expected: str, found: str) -> AudioError:
    return AudioError(
        f"{where}: expected {expected}, found {found}: the file is cut off; copy it again", "cut off"
    )


def _too_long(where: str, seconds: float, max_seconds: float) -> AudioError:
    return AudioError(
        f"{where}: expected at most {max_seconds:g} s of sound, found {seconds:.1f} s; cut it into pieces",
        "long",
    )
