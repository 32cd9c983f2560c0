"""Text-to-speech engines: espeak-ng, flite, festival and SVOX Pico behind one function, `speak`.

Each engine turns lower-case words into a mono 16 kHz waveform, always the same one for the same text. The
engines are Debian packages and one Python package (SVOX Pico); the error for a missing one says how to
install it.
"""

from __future__ import annotations

import atexit
import os
import select
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np

from echat.audio.features import SAMPLE_RATE
from echat.audio.waveform import write
from echat.optional_dependencies import missing

SpeechEngine = Literal["espeak-ng", "flite", "festival", "pico"]
Gender = Literal["male", "female"]

_SECONDS_PER_SENTENCE = 60  # time limit of an engine


class VoiceError(RuntimeError):
    """An engine is missing or failed; the message says which, and how to mend it."""


@dataclass(frozen=True)
class Voice:
    """One voice of one engine. Voices of the test split never occur in training data."""

    engine: SpeechEngine
    option: str  # name of the voice inside the engine
    gender: Gender
    split: Literal["train", "test"]

    @property
    def name(self) -> str:
        return f"{self.engine}:{self.option}"


def speak(text: str, voice: Voice, words_per_minute: int = 165) -> np.ndarray:
    """The words in a voice: float32 samples at 16 kHz. `words_per_minute` steers espeak-ng only."""
    if not any(character.isalpha() for character in text):
        raise VoiceError(f"voice {voice.name}: expected words to speak, found {text!r}")
    with tempfile.TemporaryDirectory(prefix="echat-voice-") as folder:
        path = Path(folder) / "speech.wav"
        if voice.engine == "espeak-ng":
            _run(["espeak-ng", "-v", voice.option, "-s", str(words_per_minute), "-w", str(path), "--", text])
        elif voice.engine == "flite":
            _run(["flite", "-voice", voice.option, "-t", text, "-o", str(path)])
        elif voice.engine == "pico":
            _pico(text, voice.option, path)
        else:
            _festival(os.getpid()).speak(text, voice.option, path)
        return _load(path, voice, text)


def _load(path: Path, voice: Voice, text: str) -> np.ndarray:
    import soundfile
    import soxr

    if not path.exists():
        raise VoiceError(f"voice {voice.name}: expected speech for {text!r}, found no output")
    samples, rate = soundfile.read(path, dtype="float32")
    if not samples.any():
        raise VoiceError(f"voice {voice.name}: expected speech for {text!r}, found silence")
    return np.asarray(soxr.resample(samples, rate, SAMPLE_RATE), dtype=np.float32)


def _run(command: list[str]) -> None:
    require_program(command[0])
    done = subprocess.run(command, capture_output=True, timeout=_SECONDS_PER_SENTENCE, check=False)
    if done.returncode:
        reason = done.stderr.decode(errors="replace").strip().splitlines()
        raise VoiceError(f"{' '.join(command)}: exit code {done.returncode}: {reason[-1] if reason else ''}")


@cache
def require_program(program: str) -> None:
    if shutil.which(program) is None:
        raise VoiceError(
            f"speech engine {program}: expected the program on the PATH, found none; "
            f"install it, for example with `apt install {program}`"
        )


def _pico(text: str, voice: str, path: Path) -> None:
    """A new engine for each sentence: one that has spoken before continues its noise and sounds different."""
    try:
        from ttspico import TtsEngine
    except ModuleNotFoundError:
        raise VoiceError(missing("ttspico", "speech engine pico")) from None
    samples = np.frombuffer(TtsEngine(voice).speak(text) or b"", dtype=np.int16)
    write(path, samples.astype(np.float32) / 32768.0, SAMPLE_RATE)


class _Festival:
    """A festival process for many sentences; starting one per sentence takes longer than the synthesis."""

    def __init__(self) -> None:
        require_program("festival")
        self.process = subprocess.Popen(
            ["festival", "--pipe"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,  # a buffered line would be invisible to select
        )
        atexit.register(self.process.kill)

    def speak(self, text: str, voice: str, path: Path) -> None:
        quoted = text.replace("\\", " ").replace('"', " ")
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(
            f'(voice_{voice})(utt.save.wave (utt.synth (Utterance Text "{quoted}")) "{path}" \'riff)'
            f'(format t "\\nspoken\\n")(fflush nil)\n'.encode()
        )
        self.process.stdin.flush()
        while True:
            ready, _, _ = select.select([self.process.stdout], [], [], _SECONDS_PER_SENTENCE)
            line = self.process.stdout.readline() if ready else b""
            if line.strip() == b"spoken":
                return
            if not line:
                self.process.kill()
                _festival.cache_clear()
                raise VoiceError(
                    f"festival, voice {voice}: expected speech for {text!r}, found none; "
                    "install festvox-kallpc16k, festvox-kdlpc16k and festvox-us-slt-hts"
                )


@cache
def _festival(process_id: int) -> _Festival:
    """One per process: a forked worker must not share the pipe of its parent."""
    return _Festival()
