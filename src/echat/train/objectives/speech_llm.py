"""The speech language model on every task of the table: one cross-entropy over what the assistant writes."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from pydantic import Field

from echat.data.batching import LoadingConfig, PooledBatches, fixed_batches
from echat.data.collating import DialogueBatch, collate_dialogues
from echat.data.examples import (
    CachedTokenizer,
    DialogueBuilder,
    DialogueExample,
)
from echat.data.filters import FilterConfig
from echat.data.sounds import AugmentConfig, Sounds
from echat.data.sources import SourceConfig, mixture, mixture_pairs
from echat.data.text_tokenizer import END_OF_DOCUMENT
from echat.dialogue.learned import Learned
from echat.dialogue.tasks import Profile
from echat.dialogue.vocabulary import Vocabulary
from echat.infer.engine import Engine
from echat.model.model_folder import save_model
from echat.model.speech_llm import SpeechLLM, SpeechLLMConfig
from echat.model.starting_heads import set_starting_heads
from echat.model.text_tokenizer import TextTokenizer
from echat.train.decoding import decode_dialogues, open_voice
from echat.train.objective import Loss
from echat.train.objectives.dialogue_loss import DialogueLoss
from echat.train.objectives.target_losses import LOGITS_AT_ONCE
from echat.train.recipe import Recipe
from echat.train.start import any_spells, init_from, learned_before, starting_shape
from echat.train.validation import DecodeConfig, Decoded

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


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
    logits_at_once: int = Field(LOGITS_AT_ONCE, gt=0)  # more are made in pieces; memory, no other effect
    spell_weight: float = Field(
        0.0, ge=0
    )  # of CTC that leads sound to the text vectors of its words and cues
    cue_weight: float = Field(0.0, ge=0)  # inside that CTC: of the cues once more, whatever words follow
    spells_only: bool = False  # nothing but that CTC: the sound side by itself, a fraction of the work
    export_dtype: Literal["fp32", "bf16", "fp16"] = "fp32"  # precision of the exported weights
    learned: Learned | None = None  # of texts and conversations; None: as `init_from.all` declares
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
        self._spells = recipe.spell_weight > 0 or any_spells(recipe.init_from)
        self._learned = learned_before(recipe.init_from) if recipe.learned is None else recipe.learned
        self.module = SpeechLLM(config)
        init_from(self.module, recipe.init_from)
        if recipe.starting_heads:
            set_starting_heads(self.module.llm, self._blank)
        self._loss = DialogueLoss(
            self.module,
            self.vocabulary.text_size,
            self._blank,
            speech_weight=recipe.speech_weight,
            spell_weight=recipe.spell_weight,
            cue_weight=recipe.cue_weight,
            spells_only=recipe.spells_only,
            logits_at_once=recipe.logits_at_once,
            shared_out=recipe.parallel == "fsdp",
        )
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
            self.module.config.encoder.n_mels,
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
        engine = Engine(
            self.module, self.tokenizer, self.vocabulary, self.recipe.profile, voice, spells=self._spells
        )
        pairs = mixture_pairs(self.recipe.data.validation, 0)
        return decode_dialogues(engine, pairs, self._sounds, config)

    def loss(self, batch: DialogueBatch) -> Loss:
        return self._loss(batch)

    def export(self, folder: Path) -> None:
        """A model folder that ``echat.load`` and later stages read."""
        name, dtype = Path(self.recipe.output).name, DTYPES[self.recipe.export_dtype]
        about = (self.recipe.profile, name, dtype, self._spells, self._learned)
        save_model(folder, self.module, self.tokenizer, *about)


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


def build(recipe: Settings) -> SpeechLLMObjective:
    return SpeechLLMObjective(recipe)
