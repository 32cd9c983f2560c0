"""Audio file encoding for the HTTP endpoints (wav, mp3, opus, flac, pcm), whole or streaming; inline audio
decoding."""

from __future__ import annotations

import io
import re
import struct
from typing import Any, Literal, Protocol
from urllib.parse import unquote_to_bytes

import numpy as np

from echat.serve.http.errors import APIError
from echat.serve.protocol.session import PCM_RATE
from echat.serve.protocol.wire_audio import decode_base64

FileFormat = Literal["mp3", "opus", "flac", "wav", "pcm", "pcm16"]
MEDIA_TYPES: dict[str, str] = {
    "mp3": "audio/mpeg",
    "opus": "audio/ogg",
    "flac": "audio/flac",
    "wav": "audio/wav",
    "pcm": "audio/pcm",
    "pcm16": "audio/pcm",
}
_SOUNDFILE = {"mp3": ("MP3", "MPEG_LAYER_III"), "opus": ("OGG", "OPUS"), "flac": ("FLAC", "PCM_16")}
UNKNOWN_LENGTH = 0xFFFF_FFFF


class AudioFileStream(Protocol):
    """A streaming encoder: 24 kHz 16-bit PCM in, bytes of a file out."""

    def push(self, data: bytes) -> bytes: ...

    def finish(self) -> bytes: ...


def open_audio_file(name: FileFormat) -> AudioFileStream:
    """An encoder for a file that is sent while it is written."""
    if name in _SOUNDFILE:
        return _CompressedFile(name)
    return _UncompressedFile(wav_header(UNKNOWN_LENGTH) if name == "wav" else b"")


def encode_audio_file(name: FileFormat, data: bytes) -> bytes:
    """A whole file from whole PCM."""
    if name in _SOUNDFILE:
        file = _CompressedFile(name)
        file.push(data)
        return file.whole()
    return wav_header(len(data)) + data if name == "wav" else data


def wav_header(n_bytes: int) -> bytes:
    """Header of a mono 16-bit WAV with so many bytes of samples."""
    total = min(n_bytes + 36, UNKNOWN_LENGTH)
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, PCM_RATE, 2 * PCM_RATE, 2, 16)
    return struct.pack("<4sI4s", b"RIFF", total, b"WAVE") + form + struct.pack("<4sI", b"data", n_bytes)


class _UncompressedFile:
    """Raw samples after a header."""

    def __init__(self, header: bytes) -> None:
        self._header = header

    def push(self, data: bytes) -> bytes:
        header, self._header = self._header, b""
        return header + data

    def finish(self) -> bytes:
        return self.push(b"")


class _CompressedFile:
    """The output of libsndfile. At its end libsndfile seeks back to fill in lengths; bytes that are already
    sent stay as they were, which players of streams expect."""

    def __init__(self, name: FileFormat) -> None:
        import soundfile

        kind, subtype = _SOUNDFILE[name]
        self._name = name
        self._pipe = io.BytesIO()
        self._sent = 0
        self._file: Any = soundfile.SoundFile(
            self._pipe,
            "w",
            samplerate=PCM_RATE,
            channels=1,
            format=kind,
            subtype=subtype,
            # Players compute the length of a stream from its bit rate, so the bit rate is constant.
            bitrate_mode="CONSTANT" if name == "mp3" else None,
            compression_level=0.5 if name == "mp3" else None,
        )

    def push(self, data: bytes) -> bytes:
        self._file.write(np.frombuffer(data, "<i2"))
        if self._name == "flac":  # sent at the end, as decoders fail on a header without the length
            return b""
        self._file.flush()
        return self._new()

    def finish(self) -> bytes:
        self._file.close()
        return self._new()

    def whole(self) -> bytes:
        """The file with its lengths filled in, instead of pieces."""
        self._file.close()
        return self._pipe.getvalue()

    def _new(self) -> bytes:
        data = self._pipe.getvalue()[self._sent :]
        if not self._sent and self._name == "mp3" and data:
            data = _without_length_frame(data)
        self._sent = self._pipe.seek(0, io.SEEK_END)
        return data


def _without_length_frame(data: bytes) -> bytes:
    """Cut off the first frame of an MP3, which is reserved for the length: a stream does not know it, and
    players would stop too early. Header: sync, version, layer, bit rate, rate, padding (ISO 13818-3, at 24
    kHz)."""
    index, padding = data[2] >> 4, (data[2] >> 1) & 1
    kbps = 8 * index if index <= 8 else 64 + 16 * (index - 8)
    return data[72 * kbps * 1000 // PCM_RATE + padding :]


# --- audio inside a JSON request: base64, alone or as a data URI; nothing is fetched from other hosts

_DATA_URI = re.compile(r"data:(?P<type>[^,]*?)(?P<base64>;base64)?,", re.IGNORECASE)
_REMOTE = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)


def decode_inline_audio(text: str, where: str) -> bytes:
    """The bytes of base64 or of a data URI; a remote address is refused by name."""
    text = text.strip()
    if _REMOTE.match(text):
        raise APIError(
            400,
            f"{where}: expected base64 or a data URI, found the remote address {text[:60]!r}, which is not "
            "fetched; send the sound itself",
            "invalid_value",
            where,
        )
    uri = _DATA_URI.match(text)
    if uri is not None and not uri["base64"]:
        return unquote_to_bytes(text[uri.end() :])
    encoded = text if uri is None else unquote_to_bytes(text[uri.end() :]).decode("ascii", "replace")
    return decode_base64("".join(encoded.split()), where)
