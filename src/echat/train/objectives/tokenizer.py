"""Training of the speech tokenizer: CTC of the words and reconstruction of the mel from its ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from echat.audio.features import log_mel
from echat.metrics import error_rate
from echat.token2wav.speech_tokenizer import SpeechTokenizer, SpeechTokenizerConfig, character_classes
from echat.train.objective import SampleOutput, SampleReport
from echat.train.objectives.speech_clips import (
    CACHED_CLIPS,
    Clip,
    WholeClipObjective,
    WholeClipSettings,
    load_16k,
    to_device,
)
from echat.train.recipe import DecodeConfig
from echat.train.weights.init_weights import init_from


class Settings(WholeClipSettings):
    """Recipe of the speech tokenizer."""

    objective: Literal["tokenizer"] = "tokenizer"
    tokenizer: SpeechTokenizerConfig = SpeechTokenizerConfig()
    validation_clips: int = Field(64, gt=0)
    batch_seconds: float = Field(50.0, gt=0)


@dataclass(frozen=True)
class TokenizerBatch:
    """Clips of like length with the characters spoken in them."""

    keys: tuple[str, ...]
    mel: Tensor  # (batch, time, n_mels)
    mel_lens: Tensor  # (batch,)
    characters: Tensor  # (batch, length) CTC classes
    character_lens: Tensor  # (batch,)

    @property
    def padding(self) -> float:
        """Share of the mel frames that are padding."""
        return 1.0 - float(self.mel_lens.float().mean()) / self.mel.shape[1]

    def to(self, device: torch.device) -> TokenizerBatch:
        return to_device(self, device)


class TokenizerObjective(WholeClipObjective[TokenizerBatch]):
    """Objective of :mod:`echat.train.objective` for the speech tokenizer."""

    recipe: Settings
    module: SpeechTokenizer

    def __init__(self, recipe: Settings) -> None:
        self._mel = lru_cache(maxsize=CACHED_CLIPS)(self._make_mel)
        super().__init__(recipe, SpeechTokenizer(recipe.tokenizer))
        init_from(self.module, recipe.init_from)

    def usable(self, clips: Sequence[Clip]) -> list[Clip]:
        """Only clips with a transcript."""
        return [clip for clip in clips if clip.text]

    def _make_mel(self, clip: Clip) -> Tensor:
        return log_mel(load_16k(clip), self.recipe.tokenizer.n_mels).half()

    def batch(self, clips: Sequence[Clip]) -> TokenizerBatch:
        mels = [self._mel(clip).float() for clip in clips]
        characters = [torch.tensor(character_classes(clip.text or "")) for clip in clips]
        return TokenizerBatch(
            tuple(clip.key for clip in clips),
            pad_sequence(mels, batch_first=True),
            torch.tensor([len(mel) for mel in mels]),
            pad_sequence(characters, batch_first=True),
            torch.tensor([len(row) for row in characters]),
        )

    def rows(self, batch: TokenizerBatch) -> tuple[Tensor, Mapping[str, Tensor]]:
        return self.module.loss(batch.mel, batch.mel_lens, batch.characters, batch.character_lens)

    def decode(self, config: DecodeConfig) -> SampleReport:
        """Word error rate of transcripts decoded from the ids of held-out clips."""
        outputs: list[SampleOutput] = []
        for clips in self.held_out(config.records):
            for clip, ids in zip(clips, self.module.encode([load_16k(clip) for clip in clips]), strict=True):
                hypothesis = self.module.transcribe(ids)
                outputs.append(
                    SampleOutput(clip.key, "tokenizer", clip.text or "", hypothesis, clip.audio.path)
                )
        rate = error_rate((sample.reference, sample.hypothesis) for sample in outputs).rate
        return SampleReport({} if rate is None else {"word_errors": rate}, outputs[: config.samples])

    def export(self, folder: Path) -> None:
        """A speech tokenizer folder."""
        self.module.save(folder)


build = TokenizerObjective
