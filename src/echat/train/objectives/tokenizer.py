"""Training of the speech tokenizer: the words and the sound must be readable from the ids alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from echat.audio.features import log_mel
from echat.token2wav.speech_tokenizer import SpeechTokenizer, SpeechTokenizerConfig, character_classes
from echat.train.objective import Loss
from echat.train.objectives.speech_clips import (
    Clip,
    DrawnBatches,
    heard,
    in_order,
    moved,
    neighbours,
    read_clips,
)
from echat.train.recipe import Recipe
from echat.train.start import init_from


class Settings(Recipe):
    """Recipe of the speech tokenizer."""

    objective: Literal["tokenizer"] = "tokenizer"
    precision: Literal["bf16", "fp32"] = "fp32"  # small matrices: bf16 is slower on a CPU
    tokenizer: SpeechTokenizerConfig = SpeechTokenizerConfig()
    manifests: tuple[str, ...]
    validation: tuple[str, ...] = ()
    validation_clips: int = 64
    split: str | None = None  # of `manifests`; None = all records
    validation_split: str | None = None  # of `validation`
    batch_seconds: float = Field(50.0, gt=0)  # speech per micro-batch
    max_seconds: float = 15.0  # longer clips are left out
    cached_clips: int = 10_000  # features kept in memory


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
        return moved(self, device)


class TokenizerObjective:
    """Objective of :mod:`echat.train.objective` for the speech tokenizer."""

    def __init__(self, recipe: Settings) -> None:
        self.recipe = recipe
        self.module = SpeechTokenizer(recipe.tokenizer)
        init_from(self.module, recipe.init_from)
        self._mel = lru_cache(maxsize=recipe.cached_clips)(self._make_mel)
        clips = self._clips(recipe.manifests, recipe.split)
        self.batches = DrawnBatches(
            lambda generator: self._batch(neighbours(clips, recipe.batch_seconds, generator)), recipe.seed
        )

    def _clips(self, manifests: Sequence[str], split: str | None = None) -> list[Clip]:
        """Only clips whose words are known: without them a clip cannot teach."""
        return [c for c in read_clips(manifests, split, max_seconds=self.recipe.max_seconds) if c.text]

    def _make_mel(self, clip: Clip) -> Tensor:
        return log_mel(heard(clip), self.recipe.tokenizer.n_mels).half()

    def _batch(self, clips: Sequence[Clip]) -> TokenizerBatch:
        mels = [self._mel(clip).float() for clip in clips]
        characters = [torch.tensor(character_classes(clip.text or "")) for clip in clips]
        return TokenizerBatch(
            tuple(clip.key for clip in clips),
            pad_sequence(mels, batch_first=True),
            torch.tensor([len(mel) for mel in mels]),
            pad_sequence(characters, batch_first=True),
            torch.tensor([len(row) for row in characters]),
        )

    def validation(self) -> list[TokenizerBatch]:
        if not self.recipe.validation:
            return []
        clips = self._clips(self.recipe.validation, self.recipe.validation_split)
        chosen = in_order(clips, self.recipe.batch_seconds, self.recipe.validation_clips)
        return [self._batch(batch) for batch in chosen]

    def loss(self, batch: TokenizerBatch) -> Loss:
        rows, parts = self.module.loss(batch.mel, batch.mel_lens, batch.characters, batch.character_lens)
        count = len(rows)
        return Loss(rows.sum(), count, {name: (part.detach().sum(), count) for name, part in parts.items()})

    def export(self, folder: Path) -> None:
        """A speech tokenizer folder."""
        self.module.save(folder)


def build(recipe: Settings) -> TokenizerObjective:
    return TokenizerObjective(recipe)
