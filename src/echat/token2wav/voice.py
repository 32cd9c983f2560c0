"""Voice prompts: what is computed once from a reference recording to clone its voice."""

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from echat.audio.features import SAMPLE_RATE
from echat.audio.resampling import resample
from echat.audio.vad import speech_seconds
from echat.checkpoint import read_tensors, write_tensors

MAX_PROMPT_SECONDS = 30.0  # of a reference recording
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
