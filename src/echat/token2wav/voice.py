"""The voice of a prompt: everything that is computed once from a reference recording and then kept."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from echat.audio.features import (
    SAMPLE_RATE,
    VOCODER_HOP,
    VOCODER_N_MELS,
    VOCODER_RATE,
    VOCODER_WINDOW,
    mel_22k,
)
from echat.audio.resampling import resample
from echat.audio.vad import speech_seconds
from echat.audio.waveform import check
from echat.checkpoint import read_tensors, write_tensors
from echat.token2wav.speech_tokenizer import AnySpeechTokenizer

MIN_PROMPT_SECONDS = ((VOCODER_WINDOW - VOCODER_HOP) // 2 + 1) / VOCODER_RATE
MAX_PROMPT_SECONDS = 30.0
MIN_SPEECH_SECONDS = 1.0  # of a recording that gives a voice; less gives a voice of nobody
_NAMES = ("speech_ids", "mel", "embedding")


def check_speech_duration(waveform: Tensor, rate: int, where: str) -> None:
    """ValueError for a recording in which nobody speaks, or not long enough to tell the voice."""
    waveform_16k = resample(waveform.float(), rate, SAMPLE_RATE)
    seconds, speech = len(waveform) / rate, speech_seconds(waveform_16k.numpy())
    if min(seconds, speech) < MIN_SPEECH_SECONDS:
        raise ValueError(
            f"{where}: expected a voice with at least {MIN_SPEECH_SECONDS:g} s of speech (3 to 10 s are "
            f"best), found {speech:.1f} s of speech in {seconds:.1f} s; record somebody for longer"
        )


@dataclass(frozen=True)
class VoicePrompt:
    """A reference voice; ids and mel may be empty, then only the embedding tells the voice."""

    speech_ids: Tensor  # (n,) ids of the prompt, 25 a second
    mel: Tensor  # (frames, 80) natural-log mel of the prompt, 22.05 kHz
    embedding: Tensor  # (192,) speaker embedding

    @classmethod
    def from_waveform(
        cls,
        waveform: Tensor,
        rate: int,
        tokenizer: AnySpeechTokenizer,
        speaker: Callable[[Tensor, Tensor], Tensor],
        min_rate: int = VOCODER_RATE,
        where: str = "voice prompt",
    ) -> "VoicePrompt":
        """The voice of a mono waveform `(samples,)`.

        The mel is read at 22.05 kHz; ids and speaker embedding from that same wave brought to 16 kHz. A
        recording of less than `min_rate` lacks the upper band that the voice should have and is refused.
        """
        if rate < min_rate:
            raise ValueError(
                f"{where}: expected a recording of at least {min_rate} Hz, found {rate} Hz; record it anew"
            )
        check(waveform, rate, where, min_seconds=MIN_PROMPT_SECONDS, max_seconds=MAX_PROMPT_SECONDS)
        waveform_22k = resample(waveform.float(), rate, VOCODER_RATE)
        waveform_16k = resample(waveform_22k, VOCODER_RATE, SAMPLE_RATE)
        ids = tokenizer.encode([waveform_16k])[0]
        return cls(
            torch.tensor(ids, dtype=torch.long), mel_22k(waveform_22k), speaker(waveform_22k, waveform_16k)
        )

    def without_prompt(self) -> "VoicePrompt":
        """Only the speaker embedding: synthesis gets faster by the length of the prompt."""
        return VoicePrompt(torch.zeros(0, dtype=torch.long), torch.zeros(0, VOCODER_N_MELS), self.embedding)

    def save(self, path: str | Path) -> None:
        """Write `<name>.safetensors`."""
        write_tensors(path, {name: getattr(self, name) for name in _NAMES})

    @classmethod
    def load(cls, path: str | Path) -> "VoicePrompt":
        """The voice written by :meth:`save`."""
        tensors = read_tensors(path)
        if sorted(tensors) != sorted(_NAMES):
            raise ValueError(
                f"{path}: expected a voice of {', '.join(_NAMES)}, found {', '.join(sorted(tensors))}"
            )
        return cls(*(tensors[name] for name in _NAMES))
