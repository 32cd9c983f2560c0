"""Pre-training of the speech encoder alone: characters by CTC, labels of the voice from the mean frame.

This stands for the Whisper pre-training of the released model; stage 1 starts from the encoder it exports.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from echat.audio.augmentation import AugmentConfig
from echat.checkpoint import write_tensors
from echat.config import save_config
from echat.data.audio_loading import AudioLoader
from echat.data.batching import PooledBatches, fixed_batches
from echat.data.collation import SpeechBatch, collate_speech
from echat.data.mixture import MixtureComponent, MixtureStream
from echat.data.sources import SourceConfig, source_components
from echat.data.speech_examples import SpeechBuilder, SpeechExample, has_encoder_targets
from echat.dialogue.labels import CTC_KINDS, VALUES
from echat.dialogue.vocabulary import IGNORE
from echat.metrics import error_rate
from echat.model.speech_encoder import EncoderConfig, SpeechEncoder
from echat.model_files import CONFIG_FILE, WEIGHTS_FILE
from echat.train.objective import Loss, SampleOutput, SampleReport
from echat.train.objectives.audio_data import AudioDataConfig
from echat.train.recipe import DecodeConfig, Recipe
from echat.train.weights.init_weights import init_from

TASK = "ctc"
TEXT_LANGUAGES = ("en",)  # whose texts are targets; of others the labels alone
LABEL_WEIGHT = 2.0  # of one label against one character


class EncoderDataConfig(AudioDataConfig):
    """Which clips, and how they become batches."""

    validation_records: int = 64  # per source
    batch_cost: int = Field(2000, gt=0)  # work per micro-batch: count x (longest mel / 4)


class Settings(Recipe):
    """Recipe of the encoder's pre-training."""

    renamed: ClassVar = {
        **Recipe.renamed,
        **{key: f"data.{key}" for key in EncoderDataConfig.model_fields},
        "text_languages": "",
        "label_weight": "",
    }

    objective: Literal["encoder_ctc"] = "encoder_ctc"
    encoder: EncoderConfig = EncoderConfig()
    characters: str = "abcdefghijklmnopqrstuvwxyz' "  # units; unit 0 is the blank
    data: EncoderDataConfig


class CTCEncoder(nn.Module):
    """Encoder, a CTC head for characters on every frame, a classifier per label kind on the mean frame."""

    def __init__(self, config: EncoderConfig, characters: int) -> None:
        super().__init__()
        self.encoder = SpeechEncoder(config)
        self.head = nn.Linear(config.dim, characters + 1)
        self.label_heads = nn.ModuleDict(
            {kind: nn.Linear(config.dim, len(VALUES[kind])) for kind in CTC_KINDS}
        )

    def forward(self, mel: Tensor, mel_lens: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        """(B, T, n_mels) -> scores (B, T / 2, characters + 1), their lens, scores per label kind."""
        frames, lens = self.encoder(mel, mel_lens)
        keep = torch.arange(frames.shape[1], device=lens.device) < lens[:, None]
        mean = (frames * keep[..., None]).sum(1) / lens[:, None]
        return self.head(frames), lens, [self.label_heads[kind](mean) for kind in CTC_KINDS]


class CTCObjective:
    """Objective of :mod:`echat.train.objective` for :class:`CTCEncoder`."""

    def __init__(self, recipe: Settings) -> None:
        self.recipe = recipe
        self.module = CTCEncoder(recipe.encoder, len(recipe.characters))
        init_from(self.module, recipe.init_from)
        data = recipe.data
        self._audio_loader = AudioLoader(data.sound_cache_mb)
        stream = MixtureStream(self._components(data.sources))
        build = self._builder(data.augment)
        self.batches: PooledBatches[SpeechExample, SpeechBatch] = PooledBatches(
            stream, build, collate_speech, data.batch_cost, data.pool, recipe.seed, data.workers
        )

    def _components(self, sources: Sequence[SourceConfig]) -> list[MixtureComponent]:
        return source_components(sources, TASK, has_encoder_targets, self.recipe.seed)

    def _builder(self, augment: AugmentConfig | None) -> SpeechBuilder:
        recipe = self.recipe
        return SpeechBuilder(
            recipe.characters,
            TEXT_LANGUAGES,
            self._audio_loader,
            recipe.encoder.n_mels,
            augment,
            recipe.data.filters,
        )

    def validation(self) -> list[SpeechBatch]:
        data = self.recipe.data
        components = self._components(data.validation)
        return fixed_batches(
            components, self._builder(None), collate_speech, data.batch_cost, data.validation_records
        )

    def loss(self, batch: SpeechBatch) -> Loss:
        scores, lens, label_scores = self.module(batch.mel, batch.mel_lens)
        has_text = batch.target_lens >= 0
        words = self._ctc(
            scores[has_text], lens[has_text], batch.targets[has_text], batch.target_lens[has_text]
        )
        units = float(batch.target_lens[has_text].sum())
        parts: dict[str, tuple[Tensor | float, float]] = {"characters": (words.detach(), units)}
        total, count = words, units
        for kind, kind_scores, truth in zip(CTC_KINDS, label_scores, batch.labels.T):
            known = float((truth != IGNORE).sum())
            part = F.cross_entropy(kind_scores.float(), truth, ignore_index=IGNORE, reduction="sum")
            right = (kind_scores.argmax(-1) == truth).sum()
            parts |= {kind: (part.detach(), known), f"{kind}_accuracy": (right, known)} if known else {}
            total, count = total + LABEL_WEIGHT * part, count + LABEL_WEIGHT * known
        return Loss(total, count, parts)

    def decode(self, config: DecodeConfig) -> SampleReport:
        """Word error rate of greedy CTC decoding, without a language model."""
        transcripts: list[tuple[str, str]] = []
        samples: list[SampleOutput] = []
        for batch in self.validation()[: config.records]:
            batch = batch.to(next(self.module.parameters()).device)
            scores, lens, _ = self.module(batch.mel, batch.mel_lens)
            for row in (batch.target_lens > 0).nonzero()[:, 0].tolist():
                units = batch.targets[row, : batch.target_lens[row]].tolist()
                reference = "".join(self.recipe.characters[unit - 1] for unit in units)
                hypothesis = greedy_ctc_text(scores[row, : lens[row]], self.recipe.characters)
                transcripts.append((reference, hypothesis))
                samples.append(SampleOutput(batch.keys[row], TASK, reference, hypothesis))
        rate = error_rate(transcripts).rate
        return SampleReport({} if rate is None else {"word_errors": rate}, samples[: config.samples])

    def _ctc(self, scores: Tensor, lens: Tensor, targets: Tensor, target_lens: Tensor) -> Tensor:
        """Summed negative log likelihood; clips too short for their text count 0."""
        if not len(scores):
            return scores.sum()
        log_probs = scores.float().log_softmax(-1).transpose(0, 1)  # (time, batch, units)
        return F.ctc_loss(log_probs, targets, lens, target_lens, reduction="sum", zero_infinity=True)

    def export(self, folder: Path) -> None:
        """``config.yaml`` (the recipe) and ``model.safetensors`` with the encoder under ``encoder.``."""
        save_config(self.recipe, folder / CONFIG_FILE)
        write_tensors(folder / WEIGHTS_FILE, self.module.state_dict())


build = CTCObjective


def greedy_ctc_text(scores: Tensor, characters: str) -> str:
    """Greedy CTC decoding of one clip's scores (time, units): repeats merged, blanks dropped."""
    best = scores.argmax(-1).tolist()
    units = [unit for unit, before in zip(best, [0, *best]) if unit and unit != before]
    return "".join(characters[unit - 1] for unit in units)
