"""The speech language model on every task of the table: one cross-entropy over what the assistant writes."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from echat.data.batching import LoadingConfig, PooledBatches, fixed_batches
from echat.data.collating import DialogueBatch, collate_dialogues
from echat.data.examples import (
    IGNORE,
    CachedTokenizer,
    DialogueBuilder,
    DialogueExample,
)
from echat.data.filters import FilterConfig
from echat.data.sounds import AugmentConfig, Sounds
from echat.data.sources import SourceConfig, mixture, mixture_pairs
from echat.data.text_tokenizer import END_OF_DOCUMENT
from echat.dialogue.tasks import Profile
from echat.dialogue.vocabulary import Vocabulary
from echat.infer.engine import Engine
from echat.model.model_folder import save_model
from echat.model.speech_llm import SpeechLLM, SpeechLLMConfig
from echat.model.starting_heads import set_starting_heads
from echat.model.text_tokenizer import TextTokenizer
from echat.train.decoding import decode_dialogues, open_voice
from echat.train.objective import Loss
from echat.train.recipe import Recipe
from echat.train.start import init_from, starting_shape
from echat.train.validation import DecodeConfig, Decoded

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
SPELL_SCALE = 12.0  # score of a frame that points where a text vector points
SPELL_LENGTH = 0.02  # weight of the squared distance of a frame's length from that of the text vectors


class DataConfig(LoadingConfig):
    """What is heard and read, and in which portions."""

    sources: tuple[SourceConfig, ...]
    temperature: float | None = Field(None, gt=0)  # sources also weigh by size ** (1 / temperature)
    validation: tuple[SourceConfig, ...] = ()
    validation_records: int = 32  # per source and task
    spread: float = Field(0.0, ge=0)  # of sources as text: mean count of blanks before each id heard
    learn_heard: bool = False  # predict the words of sources as text as well: what is said belongs together
    augment: AugmentConfig | None = None
    filters: FilterConfig = FilterConfig()
    max_positions: int = 2000  # longer dialogues are left out


class Settings(Recipe):
    """Recipe of every stage of the speech language model."""

    objective: Literal["speech_llm"] = "speech_llm"
    profile: Profile = "echat"
    model: SpeechLLMConfig | None = None  # what it leaves out: the shape of what is in init_from
    tokenizer: str | None = None  # folder of the text tokenizer; None: that of init_from.all or .llm
    data: DataConfig
    starting_heads: bool = False  # set three attention heads by hand; for layers that start from nothing
    speech_weight: float = Field(1.0, gt=0)  # of one speech target against one text target
    spell_weight: float = Field(
        0.0, ge=0
    )  # of CTC that leads sound to the text vectors of its words and cues
    spells_only: bool = False  # nothing but that CTC: the sound side by itself, a fraction of the work
    export_dtype: Literal["fp32", "bf16", "fp16"] = "fp32"  # precision of the exported weights
    spell_languages: tuple[str, ...] = ("en",)  # of the sound that is spelled


class SpeechLLMObjective:
    """Objective of :mod:`echat.train.objective` for :class:`SpeechLLM`."""

    def __init__(self, recipe: Settings) -> None:
        config, tokenizer = _shape(recipe)
        self.recipe = recipe = recipe.model_copy(update={"model": config, "tokenizer": str(tokenizer)})
        self.tokenizer = TextTokenizer.from_folder(tokenizer)
        if len(self.tokenizer) > config.llm.vocab_size:
            raise ValueError(
                f"model.llm.vocab_size: expected at least the {len(self.tokenizer)} ids of the tokenizer, "
                f"found {config.llm.vocab_size}"
            )
        self.vocabulary = Vocabulary.from_tokenizer(
            self.tokenizer, config.speech_codec_size, config.llm.vocab_size
        )
        self._blank = self.tokenizer.encode(END_OF_DOCUMENT)[0]
        self.module = SpeechLLM(config)
        init_from(self.module, recipe.init_from)
        if recipe.starting_heads:
            set_starting_heads(self.module.llm, self._blank)
        self._sounds = Sounds(recipe.data.sound_cache_mb)
        self._encoder_side = CachedTokenizer(self.tokenizer)
        data = recipe.data
        stream = mixture(data.sources, recipe.seed, data.temperature)
        build = self._builder(data.augment, data.learn_heard)
        self.batches: PooledBatches[DialogueExample, DialogueBatch] = PooledBatches(
            stream, build, collate_dialogues, data.batch_cost, data.pool, recipe.seed, data.workers
        )

    def _builder(self, augment: AugmentConfig | None, learn_heard: bool = False) -> DialogueBuilder:
        data = self.recipe.data
        return DialogueBuilder(
            self._encoder_side,
            self.vocabulary,
            self._sounds,
            self.recipe.profile,
            augment,
            data.max_positions,
            self.recipe.spell_languages if self.recipe.spell_weight else (),
            data.spread,
            self._blank,
            learn_heard,
            data.filters,
        )

    def validation(self) -> list[DialogueBatch]:
        data = self.recipe.data
        pairs = mixture_pairs(data.validation, 0)
        build = self._builder(None)
        return fixed_batches(pairs, build, collate_dialogues, data.batch_cost, data.validation_records)

    def decode(self, config: DecodeConfig) -> Decoded:
        voice = open_voice(config.voice)
        engine = Engine(self.module, self.tokenizer, self.vocabulary, self.recipe.profile, voice)
        pairs = mixture_pairs(self.recipe.data.validation, 0)
        return decode_dialogues(engine, pairs, self._sounds, config)

    def loss(self, batch: DialogueBatch) -> Loss:
        model = self.module
        audio_frames = None
        spelling = Loss(torch.zeros((), device=batch.ids.device), 0.0)
        if len(batch.mel):
            frames, lens = model.encode(batch.mel, batch.mel_lens)  # (clips, D, dim)
            if self.recipe.spell_weight:
                spelling = self._spelling(frames, lens, batch)
            if self.recipe.spells_only:
                return spelling
            audio_frames = frames[torch.arange(frames.shape[1], device=lens.device) < lens[:, None]]
        embeds = model.assemble(batch.kinds, batch.ids, audio_frames)
        hidden, _ = model.hidden(embeds)  # causal, padded on the right only: no mask
        losses, rows = self._target_losses(hidden, batch)
        is_speech = batch.labels[batch.labels != IGNORE] >= self.vocabulary.text_size
        weights = torch.where(is_speech, self.recipe.speech_weight, 1.0)
        total = (losses * weights).sum() + self.recipe.spell_weight * spelling.total
        count = float(weights.sum()) + self.recipe.spell_weight * spelling.count
        return Loss(total, count, {**_parts(batch, losses.detach(), rows, is_speech), **spelling.parts})

    def _spelling(self, frames: Tensor, lens: Tensor, batch: DialogueBatch) -> Loss:
        """CTC of words and cues over the text table, the end-of-document id as blank.

        The score is that of the angle, so the only way to be sure of an id is to point where its row points,
        and the length is drawn to that of the rows: sound comes to lie where the language model expects text.
        (Free scores would be learnt by frames that lie elsewhere.) Clips too short for their text count 0.
        """
        known = batch.heard_lens >= 0
        if not bool(known.any()):
            return Loss(frames.sum() * 0.0, 0.0)
        table = self.module.llm.text_embedding.weight.detach()
        spelled = frames[known].float()  # (known clips, D, dim)
        scores = SPELL_SCALE * F.linear(F.normalize(spelled, dim=-1), F.normalize(table.float(), dim=-1))
        log_probs = scores.log_softmax(-1).transpose(0, 1)
        units, unit_lens = batch.heard[known], batch.heard_lens[known]
        loss = F.ctc_loss(
            log_probs, units, lens[known], unit_lens, self._blank, reduction="sum", zero_infinity=True
        )
        count = float(unit_lens.sum())
        heard = torch.arange(frames.shape[1], device=lens.device) < lens[known][:, None]
        beyond = spelled.norm(dim=-1) / table.float().norm(dim=1).mean() - 1.0
        total = loss + SPELL_LENGTH * (beyond.square() * heard).sum()
        return Loss(total, count, {"spelling": (loss.detach(), count)})

    def _target_losses(self, hidden: Tensor, batch: DialogueBatch) -> tuple[Tensor, Tensor]:
        """Cross-entropy of each target and its dialogue's number; logits are made at these positions only."""
        targets = batch.labels != IGNORE
        rows = targets.nonzero()[:, 0]
        chosen, labels = hidden[targets], batch.labels[targets]  # (targets, dim), (targets,)
        combined = batch.writes_speech[rows]
        losses = hidden.new_zeros(len(labels), dtype=torch.float32)
        for place, head in ((~combined, self.module.text_logits), (combined, self.module.combined_logits)):
            index = place.nonzero()[:, 0]
            if len(index):
                part = F.cross_entropy(head(chosen[index]).float(), labels[index], reduction="none")
                losses = losses.index_copy(0, index, part)
        return losses, rows

    def export(self, folder: Path) -> None:
        """A model folder that ``echat.load`` and later stages read."""
        name, dtype = Path(self.recipe.output).name, DTYPES[self.recipe.export_dtype]
        save_model(folder, self.module, self.tokenizer, self.recipe.profile, name, dtype)


def _shape(recipe: Settings) -> tuple[SpeechLLMConfig, str | Path]:
    """The model's shape, and the folder of its text tokenizer."""
    config, found = starting_shape(recipe.model, recipe.init_from)
    tokenizer = recipe.tokenizer or found
    if tokenizer is None or (recipe.model is None and not recipe.init_from):
        raise ValueError(
            "recipe: expected `model:` and `tokenizer:`, or something with both in `init_from:` (all, or llm "
            "of a Qwen2 folder); found neither"
        )
    return config, tokenizer


def _parts(
    batch: DialogueBatch, losses: Tensor, rows: Tensor, is_speech: Tensor
) -> dict[str, tuple[float, float]]:
    """Summed loss and target count per task, text and speech apart."""
    slot = rows * 2 + is_speech
    sums = losses.new_zeros(2 * len(batch.tasks)).index_add_(0, slot, losses).tolist()
    counts = torch.bincount(slot, minlength=2 * len(batch.tasks)).tolist()
    parts: dict[str, tuple[float, float]] = {}
    for place, (part, count) in enumerate(zip(sums, counts)):
        if count:
            name = batch.tasks[place // 2] + ("/speech" if place % 2 else "")
            before = parts.get(name, (0.0, 0.0))
            parts[name] = (before[0] + part, before[1] + count)
    return parts


def build(recipe: Settings) -> SpeechLLMObjective:
    return SpeechLLMObjective(recipe)
