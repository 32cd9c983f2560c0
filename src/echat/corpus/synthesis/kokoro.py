"""Kokoro TTS: text to phonemes by espeak-ng, phonemes to a 24 kHz waveform by an ONNX model.

Kokoro was trained on the phoneme alphabet of misaki, in which a diphthong or an affricate is one symbol; the
tied IPA of espeak-ng is rewritten to it. A voice is a table of style vectors, one per number of phonemes.
"""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from echat.corpus.synthesis.tts_engines import VoiceError, require_program
from echat.onnx_runtime import cpu_session
from echat.optional_dependencies import missing

RATE = 24_000  # samples per second
MAX_PHONEMES = 510  # the text encoder has 512 positions, two of them are padding
STYLE_SIZE = 256
HELD_OUT_VOICES = ("af_sarah", "af_nova", "am_michael", "am_puck", "bf_emma", "bm_george")  # of tests
ANSWER_VOICE = "af_heart"

_SYMBOLS = {  # ids of the phoneme alphabet
    symbol: number
    for start, symbols in (
        (1, ";:,.!?"), (9, '—…"()“” '), (24, "AI"), (31, "O"), (33, "Q"), (35, "ST"), (39, "W"),
        (41, "Yᵊabcdef"), (50, "hijklmnopqrstuvwxyzɑɐɒæ"), (75, "βɔɕç"), (81, "ðʤə"), (85, "ɚɛɜ"), (90, "ɟ"),
        (92, "ɡ"), (99, "ɥ"), (101, "ɨɪʝ"), (110, "ɯɰŋɳɲɴø"), (118, "ɸθœ"), (123, "ɹ"), (125, "ɾɻ"),
        (128, "ʁɽʂʃʈʧ"), (135, "ʊʋ"), (138, "ʌɣɤ"), (142, "χʎ"), (147, "ʒʔ"), (156, "ˈˌː"), (162, "ʰ"),
        (164, "ʲ"), (169, "↓"), (171, "→↗↘"), (177, "ᵻ"),
    )
    for number, symbol in enumerate(symbols, start)
}  # fmt: skip
_BOTH = {
    "a^ɪ": "I", "a^ʊ": "W", "d^ʒ": "ʤ", "e^ɪ": "A", "t^ʃ": "ʧ", "ɔ^ɪ": "Y", "ə^l": "ᵊl", "r": "ɹ", "x": "k",
    "ç": "k", "ɬ": "l", "ʔˌn\u0329": "tᵊn", "ʔn\u0329": "tᵊn", "n\u0329": "ᵊn", "l\u0329": "ᵊl",
}  # fmt: skip
_AMERICAN = {
    "o^ʊ": "O", "ɚ": "əɹ", "ɐ": "ə", "ɜːɹ": "ɜɹ", "ɜː": "ɜɹ", "ɪə": "iə", "ː": "", "ɾ": "T", "ʔ": "t",
}  # fmt: skip
_BRITISH = {"ə^ʊ": "Q", "e^ə": "ɛː", "iə": "ɪə", "ɐ": "ə"}
_BARE_I = re.compile(r"(?<!\S)I(?=[^\sˈ]*(?!\S))")  # a word that begins with this diphthong and has no stress
_PAUSES = re.compile(r"\s*([;:,.!?—…]+)\s*")


@dataclass(frozen=True)
class KokoroVoice:
    """One of the English voices; its name starts with accent (a, b) and gender (f, m)."""

    name: str

    @property
    def language(self) -> str:
        return "en-gb" if self.name.startswith("b") else "en-us"

    @property
    def gender(self) -> str:
        return "female" if self.name[1] == "f" else "male"

    @property
    def is_for_training(self) -> bool:
        return self.name not in HELD_OUT_VOICES


def phonemize(text: str, language: str = "en-us") -> str:
    """The phonemes of an English text in Kokoro's alphabet, with stress and pause marks.

    The pronoun "I" gets a secondary stress, which espeak-ng leaves out: without it, Kokoro omits the word at
    the start of a phrase.
    """
    pieces = _PAUSES.split(text.strip())  # words and marks by turns
    words = [" ".join(piece.split()) for piece in pieces[::2]]
    spoken = iter(_espeak([piece for piece in words if piece], language))
    phonemes = ""
    for piece, mark in zip(words, [*pieces[1::2], ""]):
        phonemes += (next(spoken) if piece else "") + (mark[:1] + " " if mark else "")
    stressed = _BARE_I.sub("ˌI", phonemes.strip())
    return "".join(symbol for symbol in stressed if symbol in _SYMBOLS)


def _espeak(lines: list[str], language: str) -> list[str]:
    require_program("espeak-ng")
    command = ["espeak-ng", "-q", "--ipa", "--tie=^", "-v", language]
    outputs = []
    for line in lines:  # one call for each: a call for all may break a long line in two
        done = subprocess.run(command, input=line, capture_output=True, text=True, timeout=60, check=False)
        if done.returncode or not done.stdout.strip():
            raise VoiceError(
                f"espeak-ng {language}: expected phonemes for {line!r}, found {done.stderr.strip()!r}"
            )
        outputs.append(_rewrite(" ".join(done.stdout.split()), language))
    return outputs


def _rewrite(ipa: str, language: str) -> str:
    """Tied IPA of espeak-ng in Kokoro's symbols; what has no symbol of its own loses its tie."""
    for table in (_BOTH, _BRITISH if language == "en-gb" else _AMERICAN):
        for theirs, ours in table.items():
            ipa = ipa.replace(theirs, ours)
    return re.sub(r"\((?:[a-z]{2})(?:-[a-z]+)?\)|[\^_-]", "", ipa)  # marks of a change of language


@dataclass
class Kokoro:
    """The Kokoro model and its voices. `model` is an ONNX file, `voices` a folder of tables `NAME.bin`."""

    model: Path
    voices: Path
    threads: int = 1
    _styles: dict[str, np.ndarray] = field(default_factory=dict)

    @cached_property
    def session(self) -> Any:
        try:
            return cpu_session(str(self.model), self.threads)
        except ModuleNotFoundError:
            raise VoiceError(missing("onnxruntime", "Kokoro")) from None

    def style(self, name: str, phonemes: int) -> np.ndarray:
        """The style vector `(1, 256)` of a voice for so many phonemes."""
        if name not in self._styles:
            path = self.voices / f"{name}.bin"
            if not path.exists():
                known = ", ".join(sorted(file.stem for file in self.voices.glob("*.bin")))
                raise VoiceError(
                    f"Kokoro: expected a voice in {self.voices}, found no {name}.bin; there are: {known}"
                )
            self._styles[name] = np.fromfile(path, dtype="<f4").reshape(-1, STYLE_SIZE)
        table = self._styles[name]
        return table[min(max(phonemes, 1), len(table)) - 1][None]

    def speak(self, text: str, voice: KokoroVoice, speed: float = 1.0) -> np.ndarray:
        """Speech of a text: float32 samples at 24 kHz, silent edges cut. VoiceError for an overlong text."""
        phonemes = phonemize(text, voice.language)
        if not 0 < len(phonemes) <= MAX_PHONEMES:
            raise VoiceError(
                f"Kokoro: expected 1 to {MAX_PHONEMES} phonemes, found {len(phonemes)} in {text[:80]!r}"
            )
        tokens = np.array([[0, *(_SYMBOLS[symbol] for symbol in phonemes), 0]], dtype=np.int64)
        inputs = {
            "tokens": tokens,
            "style": self.style(voice.name, len(phonemes)),
            "speed": np.array([speed], dtype=np.float32),
        }
        return trim_silence(np.asarray(self.session.run(None, inputs)[0], dtype=np.float32).ravel())


def trim_silence(wave: np.ndarray, keep_seconds: float = 0.08, below_db: float = 45.0) -> np.ndarray:
    """The wave without what is `below_db` its loudest 10 ms at either end, but for a short margin."""
    window = RATE // 100
    power = np.square(wave[: len(wave) // window * window].reshape(-1, window)).mean(axis=1)
    if not power.any():
        return wave[:0]
    loud = np.flatnonzero(power > power.max() * 10 ** (-below_db / 10))
    margin = int(keep_seconds * RATE)
    return wave[max(0, loud[0] * window - margin) : (loud[-1] + 1) * window + margin]
