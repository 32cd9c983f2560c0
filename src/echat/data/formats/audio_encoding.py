"""Audio encoding for storage: the original bytes, FLAC, or Opus; reproducible to the byte."""

from __future__ import annotations

import io
from functools import lru_cache
from typing import Any, Literal

import numpy as np

from echat.audio.containers import MP3_FRAMES, PLAIN_MAGIC, SOUND_SUFFIXES, container_of
from echat.audio.errors import AudioError
from echat.data.defects import DataError, Defect, DefectKind
from echat.data.sample import AudioRef

AudioStorage = Literal["keep", "flac", "opus"]
_SOUND_MAGIC = (*(magic for magic in PLAIN_MAGIC if magic != b"RIFF"), *MP3_FRAMES, b"caff", b".snd")
_WIDE = ("PCM_24", "PCM_32", "FLOAT", "DOUBLE")  # more than 16 bit would keep
_OPUS_RATES = (8000, 12000, 16000, 24000, 48000)
_LONGEST = 86_400.0  # seconds: storing sets no limit that training has not set


def encode(ref: AudioRef, how: AudioStorage = "keep") -> tuple[bytes, str]:
    """(bytes, suffix) of a sound. A stretch is cut out, without loss unless ``how`` is Opus.

    Raises AudioError or DataError for sound that is not there or, where it is decoded, cannot be.
    """
    data = ref.read_bytes()
    if not data:
        raise DataError(
            Defect(
                DefectKind.EMPTY_AUDIO,
                ref.path,
                f"member {ref.member}" if ref.member else "",
                reason="0 bytes",
            )
        )
    if not is_sound(data):
        raise AudioError(
            f"{ref.where}: expected a sound file, found bytes that no sound begins with", "undecodable"
        )
    is_whole = ref.start_seconds is None and ref.end_seconds is None
    suffix = suffix_of(ref, data)
    if is_whole and (how == "keep" or suffix == f".{how}"):
        return data, suffix
    _refuse_undecodable(data, ref.where)
    samples, rate, subtype = _decode(data, ref)
    if how == "opus":
        return _opus(samples, rate), ".opus"
    wide = subtype in _WIDE
    if how == "keep" and subtype in ("FLOAT", "DOUBLE"):
        return _write(samples, rate, "WAV", subtype), ".wav"
    kind = "FLAC" if how == "flac" else "WAV"
    return _write(samples, rate, kind, "PCM_24" if wide else "PCM_16"), f".{kind.lower()}"


def _refuse_undecodable(data: bytes, where: str) -> None:
    """AudioError that names what is wrong with sound that cannot be decoded whole."""
    from echat.audio.waveform import read

    read(data, name=where, min_seconds=0.0, max_seconds=_LONGEST, allow_silence=True)


def is_sound(data: bytes) -> bool:
    """Is it sound by its header? Nothing else is copied from where a record says it lies."""
    if data[:4] in (b"RIFF", b"RF64", b"FORM") and data[8:12] in (b"WAVE", b"AIFF", b"AIFC"):
        return True
    if data.startswith(_SOUND_MAGIC) or container_of(data) is not None:
        return True
    import soundfile

    try:
        return bool(soundfile.info(io.BytesIO(data)).frames)
    except (soundfile.LibsndfileError, ValueError, TypeError):
        return False


def suffix_of(ref: AudioRef, data: bytes) -> str:
    """The suffix that says what the bytes are: that of the name, or what they begin with."""
    if ref.suffix[1:] in SOUND_SUFFIXES:
        return ref.suffix
    if (container := container_of(data)) is not None:
        return f".{container.suffixes[0]}"
    suffix = next((suffix for magic, suffix in PLAIN_MAGIC.items() if data.startswith(magic)), "wav")
    if suffix == "ogg" and b"OpusHead" in data[:64]:
        return ".opus"
    return ".mp3" if data[:1] == b"\xff" else f".{suffix}"


def _decode(data: bytes, ref: AudioRef) -> tuple[np.ndarray, int, str]:
    """(samples, channels) as integers where the file holds integers, else as floats."""
    import soundfile

    from echat.audio.file_decoding import open_sound

    try:
        with open_sound(data, ref.where, _LONGEST, plainly=False) as sound:
            kind = {"PCM_16": "int16", "PCM_24": "int32", "PCM_32": "int32"}.get(sound.subtype, "float64")
            samples = sound.read(-1, dtype=kind, always_2d=True)
            begin = round((ref.start_seconds or 0.0) * sound.samplerate)
            end = None if ref.end_seconds is None else round(ref.end_seconds * sound.samplerate)
            return samples[begin:end], sound.samplerate, sound.subtype
    except soundfile.LibsndfileError as error:
        raise AudioError(f"{ref.where}: expected sound, found: {error}", "undecodable") from error


def _write(samples: np.ndarray, rate: int, kind: str, subtype: str) -> bytes:
    import soundfile

    stream = io.BytesIO()
    soundfile.write(stream, samples, rate, format=kind, subtype=subtype)
    return stream.getvalue()


def _opus(samples: np.ndarray, rate: int) -> bytes:
    """Opus in Ogg at the rate itself or the next that Opus knows."""
    import soxr

    if samples.dtype != np.float64:
        samples = samples / -float(np.iinfo(samples.dtype).min)
    wanted = next((known for known in _OPUS_RATES if known >= rate), _OPUS_RATES[-1])
    if wanted != rate:
        samples = soxr.resample(samples, rate, wanted)
    return _same_serial(_write(samples, wanted, "OGG", "OPUS"))


def _same_serial(data: bytes) -> bytes:
    """The stream number, which the encoder chooses at random, set to 0 in every Ogg page."""
    pages = bytearray(data)
    position = 0
    while position + 27 <= len(pages):
        table = pages[position + 27 : position + 27 + pages[position + 26]]
        end = position + 27 + len(table) + sum(table)
        pages[position + 14 : position + 18] = bytes(4)
        pages[position + 22 : position + 26] = bytes(4)
        pages[position + 22 : position + 26] = _ogg_crc(pages[position:end]).to_bytes(4, "little")
        position = end
    return bytes(pages)


def _ogg_crc(page: bytes | bytearray) -> int:
    table, crc = _crc_table(), 0
    for byte in page:
        crc = (crc << 8 & 0xFFFFFFFF) ^ table[crc >> 24 ^ byte]
    return crc


@lru_cache(maxsize=1)
def _crc_table() -> Any:
    table = []
    for byte in range(256):
        value = byte << 24
        for _ in range(8):
            value = (value << 1 ^ 0x04C11DB7 if value & 0x80000000 else value << 1) & 0xFFFFFFFF
        table.append(value)
    return table
