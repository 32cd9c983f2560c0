"""The training objective of the speech language model, for every task of the task table."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field, field_validator

from echat.audio.augmentation import AugmentConfig
from echat.config import Config
from echat.data.audio_loading import AudioLoader
from echat.data.batching import PooledBatches, fixed_batches
from echat.data.collation import DialogueBatch, collate_dialogues
from echat.data.examples import (
    CachedTokenizer,
    DialogueBuilder,
    DialogueExample,
)
from echat.data.sources import mixture, mixture_components
from echat.devices import DTYPES
from echat.dialogue.capabilities import Capabilities
from echat.dialogue.tasks import Profile
from echat.infer.engine import Engine
from echat.model.model_folder import save_model
from echat.model.speech_llm import SpeechLLM, SpeechLLMConfig
from echat.model.text_tokenizer import TextTokenizer
from echat.train.extras.induction_init import init_induction_heads
from echat.train.objective import Loss, SampleReport
from echat.train.objectives.audio_data import AudioDataConfig
from echat.train.objectives.ctc_loss import CTCConfig, CTCLoss
from echat.train.objectives.dialogue_eval import decode_dialogues, load_token2wav
from echat.train.objectives.dialogue_loss import DialogueLoss
from echat.train.objectives.fused_cross_entropy import MAX_LOGITS
from echat.train.recipe import DecodeConfig, Recipe
from echat.train.weights.init_weights import inherited_learned, init_from, init_has_ctc, initial_config


class PseudoAudioConfig(Config):
    """How sources with `pseudo_audio: true` put words and labels as text in the place of sound."""

    blanks: float = Field(0.0, ge=0)  # mean count of blank ids before each text id (blank insertion)
    loss_on_input: bool = False  # predict this text as well: words that belong together


class InitConfig(Config):
    """Weights set by construction, for layers that start from nothing."""

    induction_heads: bool = False  # three attention heads that copy


class DataConfig(AudioDataConfig):
    """Corpora, their shares, and how their records become batches."""

    renamed: ClassVar = {"spread": "pseudo_audio.blanks", "learn_heard": "pseudo_audio.loss_on_input"}

    temperature: float | None = Field(None, gt=0)  # sources also weigh by size ** (1 / temperature)
    pseudo_audio: PseudoAudioConfig = PseudoAudioConfig()
    max_positions: int = 2000  # longer dialogues are left out


class Settings(Recipe):
    """Recipe of every stage of the speech language model."""

    renamed: ClassVar = {
        **Recipe.renamed,
        "spell_weight": "ctc.weight",
        "cue_weight": "ctc.label_weight",
        "spells_only": "ctc.only",
        "spell_languages": "ctc.languages",
        "starting_heads": "init.induction_heads",
        "logits_at_once": "max_logits",
    }

    objective: Literal["speech_llm"] = "speech_llm"
    profile: Profile = "echat"
    model: SpeechLLMConfig | None = None  # what it leaves out: the shape of what is in init_from
    tokenizer: str | None = None  # folder of the text tokenizer; None: that of init_from.all or .llm
    data: DataConfig
    init: InitConfig = InitConfig()
    ctc: CTCConfig | None = None
    speech_weight: float = Field(1.0, gt=0)  # of one speech target against one text target
    max_logits: int = Field(MAX_LOGITS, gt=0)  # made at once; more in pieces: memory, no other effect
    export_dtype: Literal["fp32", "bf16", "fp16"] = "fp32"  # precision of the exported weights
    learned: Capabilities | None = None  # of texts and conversations; None: as `init_from.all` declares

    @field_validator("ctc")
    @classmethod
    def _without_weight_none(cls, ctc: CTCConfig | None) -> CTCConfig | None:
        return ctc if ctc is not None and ctc.weight > 0 else None


class SpeechLLMObjective:
    """Objective of :mod:`echat.train.objective` for :class:`SpeechLLM`."""

    def __init__(self, recipe: Settings) -> None:
        config, tokenizer = _initial_config(recipe)
        self.recipe = recipe = recipe.model_copy(update={"model": config, "tokenizer": str(tokenizer)})
        self.tokenizer = TextTokenizer.from_folder(tokenizer)
        if len(self.tokenizer) > config.llm.vocab_size:
            raise ValueError(
                f"model.llm.vocab_size: expected at least the {len(self.tokenizer)} ids of the tokenizer, "
                f"found {config.llm.vocab_size}"
            )
        self.vocabulary = self.tokenizer.vocabulary(config.speech_codec_size, config.llm.vocab_size)
        self._blank = self.tokenizer.encode(self.tokenizer.template.document_end)[0]
        self._has_ctc = recipe.ctc is not None or init_has_ctc(recipe.init_from)
        self._learned = inherited_learned(recipe.init_from) if recipe.learned is None else recipe.learned
        self.module = SpeechLLM(config)
        init_from(self.module, recipe.init_from)
        if recipe.init.induction_heads:
            init_induction_heads(self.module.llm, self._blank)
        ctc = None if recipe.ctc is None else CTCLoss(recipe.ctc, self._blank)
        self._loss = DialogueLoss(
            self.module,
            self.vocabulary.text_size,
            ctc,
            speech_weight=recipe.speech_weight,
            max_logits=recipe.max_logits,
            is_sharded=recipe.parallel == "fsdp",
        )
        self._audio_loader = AudioLoader(recipe.data.sound_cache_mb)
        self._cached_tokenizer = CachedTokenizer(self.tokenizer)
        data = recipe.data
        stream = mixture(data.sources, recipe.seed, data.temperature)
        build = self._builder(data.augment, data.pseudo_audio.loss_on_input)
        self.batches: PooledBatches[DialogueExample, DialogueBatch] = PooledBatches(
            stream, build, collate_dialogues, data.batch_cost, data.pool, recipe.seed, data.workers
        )

    def _builder(self, augment: AugmentConfig | None, loss_on_input: bool = False) -> DialogueBuilder:
        data = self.recipe.data
        return DialogueBuilder(
            self._cached_tokenizer,
            self.vocabulary,
            self._audio_loader,
            self.module.config.encoder,
            self.recipe.profile,
            augment,
            data.max_positions,
            () if self.recipe.ctc is None else self.recipe.ctc.languages,
            data.pseudo_audio.blanks,
            self._blank,
            loss_on_input,
            data.filters,
        )

    def validation(self) -> list[DialogueBatch]:
        data = self.recipe.data
        components = mixture_components(data.validation, 0)
        build = self._builder(None)
        return fixed_batches(components, build, collate_dialogues, data.batch_cost, data.validation_records)

    def decode(self, config: DecodeConfig) -> SampleReport:
        voice = load_token2wav(config.voice)
        engine = Engine(
            self.module, self.tokenizer, self.vocabulary, self.recipe.profile, voice, has_ctc=self._has_ctc
        )
        components = mixture_components(self.recipe.data.validation, 0)
        return decode_dialogues(engine, components, self._audio_loader, config)

    def loss(self, batch: DialogueBatch) -> Loss:
        return self._loss(batch)

    def export(self, folder: Path) -> None:
        """A model folder that ``echat.load`` and later stages read."""
        name, dtype = Path(self.recipe.output).name, DTYPES[self.recipe.export_dtype]
        about = (self.recipe.profile, name, dtype, self._has_ctc, self._learned)
        save_model(folder, self.module, self.tokenizer, *about)


def _initial_config(recipe: Settings) -> tuple[SpeechLLMConfig, str | Path]:
    """The model's shape, and the folder of its text tokenizer."""
    config, found = initial_config(recipe.model, recipe.init_from)
    tokenizer = recipe.tokenizer or found
    if tokenizer is None or (recipe.model is None and not recipe.init_from):
        raise ValueError(
            "recipe: expected `model:` and `tokenizer:`, or something with both in `init_from:` (all, or llm "
            "of a Qwen2 folder); found neither"
        )
    return config, tokenizer


build = SpeechLLMObjective
