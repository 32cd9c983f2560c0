"""Decoding of the audio formats of browsers and phones (webm, m4a, 3gp, amr, aac, wma) by PyAV or ffmpeg.

Both are FFmpeg: PyAV inside this process, ffmpeg as a program beside it. Only the bytes given are decoded:
the demuxer is named, so that no playlist or script is followed, and protocols that reach elsewhere are off.
"""

from __future__ import annotations

import importlib.util
import io
import os
import shutil
import struct
import subprocess
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from echat.audio.containers import MEDIA_SUFFIXES, PLAIN_SUFFIXES
from echat.audio.errors import AudioError
from echat.optional_dependencies import how_to_install

WORKING_SECONDS = 120.0  # of decoding one file; a minute of sound takes a tenth of a second
_LONGEST = 1e6  # seconds; ffmpeg knows no infinity
INSTALL = f"{how_to_install('av')}, or install ffmpeg, or convert the file to wav"


def has_decoder() -> bool:
    """Can such files be read here?"""
    return importlib.util.find_spec("av") is not None or shutil.which("ffmpeg") is not None


def readable_suffixes() -> tuple[str, ...]:
    """File name suffixes that can be read on this machine, without dots."""
    return PLAIN_SUFFIXES + (MEDIA_SUFFIXES if has_decoder() else ())


def refuse_without_decoder(kind: str, where: str) -> None:
    """AudioError that says what reads such a file."""
    if not has_decoder():
        raise AudioError(
            f"{where}: expected one of {', '.join(PLAIN_SUFFIXES)}, found {kind}, which needs a decoder; "
            f"{INSTALL}",
            "undecodable",
        )


def decode(data: bytes, demuxer: str, where: str, most_seconds: float) -> tuple[np.ndarray, int]:
    """(samples, channels) float32 and their rate; at most a little more than ``most_seconds`` of them.

    Raises AudioError for what does not decode.
    """
    if importlib.util.find_spec("av") is not None:
        return _with_pyav(data, demuxer, where, most_seconds)
    return _with_ffmpeg(data, demuxer, where, most_seconds)


def _with_pyav(data: bytes, demuxer: str, where: str, most_seconds: float) -> tuple[np.ndarray, int]:
    import av

    try:
        options = {"protocol_whitelist": "pipe"}
        with av.open(io.BytesIO(data), format=demuxer, options=options, metadata_errors="replace") as file:
            if not file.streams.audio:
                raise _undecodable(where, demuxer, "no sound in it")
            blocks = list(_blocks(file, where, most_seconds))
    except (av.error.FFmpegError, ValueError, MemoryError, OverflowError) as error:
        if isinstance(error, AudioError):
            raise
        raise _undecodable(where, demuxer, str(error)) from error
    if not blocks:
        raise _undecodable(where, demuxer, "not a single sample in it")
    rate = blocks[0][1]
    return np.ascontiguousarray(np.concatenate([block for block, _ in blocks])), rate


def _blocks(file: Any, where: str, most_seconds: float) -> Iterator[tuple[np.ndarray, int]]:
    """(samples, channels) of each frame and the rate, all in the form of the first frame."""
    import av

    deadline = time.monotonic() + WORKING_SECONDS
    resampler, seconds = None, 0.0
    for frame in file.decode(file.streams.audio[0]):
        if resampler is None:
            resampler = av.AudioResampler("flt", frame.layout, frame.sample_rate)
            channels, rate = frame.layout.nb_channels, frame.sample_rate
        for part in resampler.resample(frame):
            yield part.to_ndarray().reshape(-1, channels), rate
        seconds += frame.samples / frame.sample_rate
        if seconds > most_seconds + 1.0:
            return
        if time.monotonic() > deadline:
            raise _undecodable(where, file.format.name, f"more than {WORKING_SECONDS:g} s of work")


def _with_ffmpeg(data: bytes, demuxer: str, where: str, most_seconds: float) -> tuple[np.ndarray, int]:
    """ffmpeg reads the bytes through a file descriptor, because mp4 needs a file that can seek."""
    with _unnamed_file() as file:
        file.write(data)
        file.flush()
        command = [shutil.which("ffmpeg") or "ffmpeg", "-nostdin", "-v", "error", "-xerror"]
        command += ["-protocol_whitelist", "file", "-f", demuxer, "-i", f"/dev/fd/{file.fileno()}"]
        command += ["-map", "0:a:0", "-t", f"{min(most_seconds + 1.0, _LONGEST):g}"]
        command += ["-c:a", "pcm_f32le", "-f", "wav", "pipe:1"]
        try:
            done = subprocess.run(
                command, capture_output=True, timeout=WORKING_SECONDS, pass_fds=(file.fileno(),), check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise _undecodable(where, demuxer, f"ffmpeg: {error}") from error
    if done.returncode:
        lines = done.stderr.decode("utf-8", "replace").strip().splitlines() or ["ffmpeg gives no reason"]
        raise _undecodable(where, demuxer, lines[0][:200])
    return _samples_of(done.stdout, where, demuxer)


def _unnamed_file() -> Any:
    """A temporary file without a name; in RAM where the system offers it."""
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("sound"), "w+b")
    return tempfile.TemporaryFile()


def _samples_of(wav: bytes, where: str, demuxer: str) -> tuple[np.ndarray, int]:
    """The samples of ffmpeg's output: a wav of float32 with an unknown length in its header."""
    form, body = wav.find(b"fmt "), wav.find(b"data")
    if form < 0 or body < 0 or len(wav) - body - 8 < 4:
        raise _undecodable(where, demuxer, "not a single sample in it")
    channels, rate = struct.unpack_from("<HI", wav, form + 10)
    values = np.frombuffer(wav, "<f4", (len(wav) - body - 8) // (4 * channels) * channels, body + 8)
    return values.reshape(-1, channels), rate


def _undecodable(where: str, demuxer: str, reason: str) -> AudioError:
    return AudioError(
        f"{where}: expected sound in a {demuxer} file, found one that does not decode ({reason}); "
        "record it again, or convert it to wav",
        "undecodable",
    )
