"""Decoding of an audio file in any format to mono samples (WAV, libsndfile, or PyAV / ffmpeg)."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import numpy as np

from echat.audio import media_decoding
from echat.audio.containers import CODEC_DEMUXERS, container_of, refuse_cut_off
from echat.audio.errors import AudioError
from echat.audio.wav import PlainWav, Samples, cut_off, is_wav, refuse_impossible_rate, whole_wav

ANTIPHASE_SHARE = 0.5  # power of the mean, as a share of what channels without a relation would leave


def decode(
    data: bytes, where: str, max_seconds: float, stretch: tuple[float, float | None] = (0.0, None)
) -> tuple[np.ndarray, int]:
    """Mono float32 samples of a stretch in seconds, and their rate. Raises AudioError."""
    import soundfile

    if not data:
        raise AudioError(
            f"{where}: expected an audio file, found an empty one (0 bytes); record it again", "empty"
        )
    most_seconds = max_seconds + stretch[0] if stretch[1] is None else stretch[1]
    try:
        with open_sound(data, where, most_seconds) as sound:
            rate = sound.samplerate
            refuse_impossible_rate(rate, where)
            begin = min(round(stretch[0] * rate), sound.frames)
            end = sound.frames if stretch[1] is None else min(round(stretch[1] * rate), sound.frames)
            announced = max(0, end - begin)
            if max_seconds * rate < announced < 2**62:
                raise too_long(where, announced / rate, max_seconds)
            if begin:
                sound.seek(begin)
            samples = _mono_blocks(sound, where, max_seconds, announced)
    except soundfile.LibsndfileError as error:
        raise AudioError(_undecodable(data, where, error), "undecodable") from error
    if 0 < announced < 2**62 and len(samples) < announced and not _is_mp3(data):
        raise cut_off(where, f"{announced} samples", f"{len(samples)} samples")
    return samples, rate


def open_sound(data: bytes, where: str, most_seconds: float = math.inf, plainly: bool = True) -> Any:
    """A reader like ``soundfile.SoundFile``; ``plainly``: of a plain WAV without a decoder, as floats alone.

    AudioError for a truncated file or a missing decoder, LibsndfileError for bytes that are no audio. More
    than ``most_seconds`` need not be decoded.
    """
    import soundfile

    container = container_of(data)
    if container is not None:
        media_decoding.refuse_without_decoder(container.name, where)
        refuse_cut_off(data, container, where)
        return Samples(*media_decoding.decode(data, container.demuxer, where, most_seconds))
    if is_wav(data):
        data = whole_wav(data, where)
    elif data.startswith(b"OggS"):
        _refuse_cut_ogg(data, where)
    plain = PlainWav.of(data) if plainly else None
    if plain is not None:
        return plain
    try:
        return soundfile.SoundFile(io.BytesIO(data))
    except soundfile.LibsndfileError:
        demuxer = next((name for magic, name in CODEC_DEMUXERS if data.startswith(magic)), None)
        if demuxer is None or not media_decoding.has_decoder():
            raise
        return Samples(*media_decoding.decode(data, demuxer, where, most_seconds))


def seconds_of(path: str) -> float:
    """Duration according to the header of a file. AudioError, LibsndfileError or OSError without any."""
    import soundfile

    with open(path, "rb") as file:
        head = file.read(16)
    if container_of(head) is None:
        length = float(soundfile.info(path).duration)
        if length > 0:
            return length
    with open_sound(Path(path).read_bytes(), path) as sound:
        return float(sound.frames / sound.samplerate)


def _mono_blocks(sound: Any, where: str, max_seconds: float, most: int) -> np.ndarray:
    """Decode minute by minute, so that a file of unknown length cannot exhaust RAM; ``most`` samples."""
    blocks: list[np.ndarray] = []
    total, channel = 0, None
    while total < most:
        count = min(60 * sound.samplerate, most - total)
        block = sound.read(count, dtype="float32", always_2d=True)  # (samples, channels)
        if not len(block):
            break
        if channel is None and block.any():  # chosen once for the whole file
            channel = _channel_for_all(block)
        blocks.append(block.mean(axis=1) if channel in (None, _MEAN) else block[:, channel])
        total += len(block)
        if total > max_seconds * sound.samplerate:
            raise too_long(where, total / sound.samplerate, max_seconds)
    return np.ascontiguousarray(np.concatenate(blocks)) if blocks else np.zeros(0, dtype=np.float32)


_MEAN = -1


def _channel_for_all(block: np.ndarray) -> int:
    """The loudest channel where the channels cancel each other, as with one wire of a microphone swapped;
    else -1 for the mean of all."""
    channels = block.shape[1]
    if channels == 1:
        return 0
    powers = block.var(axis=0, dtype=np.float64)
    left = channels**2 * block.mean(axis=1).var(dtype=np.float64)
    return int(powers.argmax()) if left < ANTIPHASE_SHARE * powers.sum() else _MEAN


def _refuse_cut_ogg(data: bytes, where: str) -> None:
    """The decoder silently shortens an ogg that ends too early."""
    last = data.rfind(b"OggS")
    segments = data[last + 26] if last + 27 <= len(data) else None
    table = data[last + 27 : last + 27 + (segments or 0)]
    end = last + 27 + len(table) + sum(table)
    is_whole = segments is not None and len(table) == segments and end <= len(data)
    if not is_whole or not data[last + 5] & 4:  # flag 4 marks the last page of a stream
        raise cut_off(where, "a last Ogg page marked as the end", f"{len(data)} bytes without it")


def _undecodable(data: bytes, where: str, error: Exception) -> str:
    head = data[:512]
    is_text = b"\0" not in head and all(byte >= 32 or byte in b"\t\r\n\f" for byte in head)
    reason = getattr(error, "error_string", str(error)).rstrip(".")
    found = "text" if is_text else f"{len(data)} bytes that do not decode ({reason})"
    return (
        f"{where}: expected an audio file ({', '.join(media_decoding.readable_suffixes())}), found {found}; "
        "convert it to wav, or check that the right file was named"
    )


def _is_mp3(data: bytes) -> bool:
    return data[:3] == b"ID3" or (data[0] == 0xFF and data[1:2] >= b"\xe0")


def too_long(where: str, seconds: float, max_seconds: float) -> AudioError:
    """The error of a sound that is longer than allowed."""
    return AudioError(
        f"{where}: expected at most {max_seconds:g} s of sound, found {seconds:.1f} s; cut it into pieces",
        "long",
    )
