"""Who speaks: speech synthesis engines as command lines, and the table of voices with its held-out part.

Each engine turns lower-case English words into a mono 16 kHz waveform, always the same one for the same text.
The engines are Debian packages (espeak-ng, flite, festival) and one Python package (SVOX Pico); a missing one
is named with its remedy.
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

_SECONDS_PER_SENTENCE = 60  # an engine that is silent for longer has hung


class VoiceError(RuntimeError):
    """An engine is missing or failed; the message says which and what mends it."""


@dataclass(frozen=True)
class Voice:
    """One voice of one engine. No voice of the test split ever speaks in training."""

    engine: SpeechEngine
    option: str  # name of the voice inside the engine
    gender: Gender
    split: Literal["train", "test"]

    @property
    def name(self) -> str:
        return f"{self.engine}:{self.option}"

    @property
    def is_recorded(self) -> bool:
        """Built from recordings of a person, unlike the formant synthesis of espeak-ng."""
        return self.engine != "espeak-ng"


def _espeak(split: Literal["train", "test"], gender: Gender, *options: str) -> list[Voice]:
    return [Voice("espeak-ng", option, gender, split) for option in options]


VOICES: tuple[Voice, ...] = (
    *_espeak("train", "female", "en-us+f1", "en-us+f2", "en-gb+f4", "en-gb-scotland+f1", "en-us+linda"),
    *_espeak("train", "female", "en-us+belinda", "en-us+aunty", "en-us+Annie", "en-gb+f2", "en-us+grandma"),
    *_espeak("train", "female", "en-us+Andrea", "en-gb-x-rp+f1", "en-us+f4", "en-us+shelby"),
    *_espeak("train", "male", "en-us+m1", "en-us+m2", "en-us+m3", "en-gb+m4", "en-gb+m6", "en-us+m7"),
    *_espeak("train", "male", "en-us+Andy", "en-us+Gene", "en-us+Mike", "en-gb-x-rp+Lee", "en-us+max"),
    *_espeak(
        "train", "male", "en-us+john", "en-us+victor", "en-gb-scotland+m2", "en-us+norbert", "en-us+klatt3"
    ),
    *_espeak("train", "male", "en-us", "en-gb", "en-us+grandpa", "en-us+ed"),
    Voice("flite", "awb", "male", "train"),
    Voice("flite", "slt", "female", "train"),
    Voice("flite", "kal16", "male", "train"),
    Voice("festival", "kal_diphone", "male", "train"),
    Voice("festival", "ked_diphone", "male", "train"),
    Voice("festival", "cmu_us_slt_arctic_hts", "female", "train"),
    Voice("pico", "en-US", "female", "train"),
    Voice("pico", "en-GB", "female", "train"),
    *_espeak("test", "female", "en-us+f3", "en-gb+f5", "en-us+Alicia"),
    *_espeak("test", "male", "en-us+m5", "en-gb+boris", "en-us+Denis"),
    Voice("flite", "rms", "male", "test"),
)

REPLY_VOICE = next(voice for voice in VOICES if voice.name == "flite:slt")  # speaks every answer, unmodified

# How often each recorded voice and, together, the formant voices speak in training.
TRAIN_SHARES = {
    "flite:awb": 0.15,
    "flite:slt": 0.14,
    "flite:kal16": 0.05,
    "festival:ked_diphone": 0.06,
    "festival:kal_diphone": 0.03,
    "festival:cmu_us_slt_arctic_hts": 0.07,
    "pico:en-US": 0.11,
    "pico:en-GB": 0.11,
}


def voices(split: Literal["train", "test"], engine: SpeechEngine | None = None) -> list[Voice]:
    """The voices of a split (of one engine), in the order of the table."""
    return [voice for voice in VOICES if voice.split == split and engine in (None, voice.engine)]


def choose_training_voice(rng: np.random.Generator) -> Voice:
    """A training voice, recorded ones by `TRAIN_SHARES`, the formant voices evenly for the rest."""
    draw = float(rng.random())
    for voice in voices("train"):
        draw -= TRAIN_SHARES.get(voice.name, 0.0)
        if draw < 0:
            return voice
    formant = voices("train", "espeak-ng")
    return formant[int(rng.integers(len(formant)))]


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
    """An engine for each sentence: an older one starts its noise elsewhere and never sounds alike twice."""
    try:
        from ttspico import TtsEngine
    except ModuleNotFoundError:
        raise VoiceError(missing("ttspico", "speech engine pico")) from None
    samples = np.frombuffer(TtsEngine(voice).speak(text) or b"", dtype=np.int16)
    write(path, samples.astype(np.float32) / 32768.0, SAMPLE_RATE)


class _Festival:
    """One long-lived festival process; starting it anew for each sentence takes longer than speaking."""

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
