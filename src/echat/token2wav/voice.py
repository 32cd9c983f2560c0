"""Voice prompts: what is computed once from a reference recording to clone its voice."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from echat.audio.features import SAMPLE_RATE, VOCODER_RATE, MelFormat, vocoder_mel
from echat.audio.resampling import resample
from echat.audio.speech_tokens import SpeechTokenizer
from echat.audio.vad import speech_seconds
from echat.audio.waveform import check
from echat.checkpoint import read_tensors, write_tensors

MAX_PROMPT_SECONDS = 30.0
MIN_SPEECH_SECONDS = 1.0  # of a recording that gives a voice; less gives an arbitrary voice
_NAMES = ("speech_ids", "mel", "embedding")


def check_speech_duration(waveform: Tensor, rate: int, where: str) -> None:
    """ValueError for a recording in which nobody speaks, or not for long enough."""
    waveform_16k = resample(waveform.float(), rate, SAMPLE_RATE)
    seconds, speech = len(waveform) / rate, speech_seconds(waveform_16k.numpy())
    if min(seconds, speech) < MIN_SPEECH_SECONDS:
        raise ValueError(
            f"{where}: expected a voice with at least {MIN_SPEECH_SECONDS:g} s of speech (3 to 10 s are "
            f"best), found {speech:.1f} s of speech in {seconds:.1f} s; record somebody for longer"
        )


@dataclass(frozen=True)
class VoicePrompt:
    """A reference voice; ids and mel may be empty, then the embedding alone decides."""

    speech_ids: Tensor  # (n,) ids of the prompt, 25 a second
    mel: Tensor  # (frames, 80) natural-log mel of the prompt, in the format of the flow
    embedding: Tensor  # (192,) speaker embedding

    @classmethod
    def from_waveform(
        cls,
        waveform: Tensor,
        rate: int,
        tokenizer: SpeechTokenizer,
        speaker: Callable[[Tensor, Tensor], Tensor],
        mel: MelFormat,
        min_rate: int = VOCODER_RATE,
        where: str = "voice prompt",
    ) -> "VoicePrompt":
        """The voice of a mono waveform `(samples,)`.

        `mel` is the format of the flow. Ids and speaker embedding come from that same wave at 16 kHz. A
        recording of less than `min_rate` lacks the upper band that the voice should have and is refused.
        """
        if rate < min_rate:
            raise ValueError(
                f"{where}: expected a recording of at least {min_rate} Hz, found {rate} Hz; record it anew"
            )
        check(waveform, rate, where, min_seconds=(mel.edge + 1) / mel.rate, max_seconds=MAX_PROMPT_SECONDS)
        waveform = resample(waveform.float(), rate, mel.rate)
        waveform_16k = resample(waveform, mel.rate, SAMPLE_RATE)
        ids = tokenizer.encode([waveform_16k])[0]
        return cls(
            torch.tensor(ids, dtype=torch.long), vocoder_mel(waveform, mel), speaker(waveform, waveform_16k)
        )

    def without_prompt(self) -> "VoicePrompt":
        """Only the speaker embedding: synthesis gets faster by the length of the prompt."""
        return VoicePrompt(self.speech_ids[:0], self.mel[:0], self.embedding)

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
