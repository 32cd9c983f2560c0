"""A recipe: the configuration of a training run, one frozen record for all its settings.

A YAML file states what differs from the defaults here; ``base: other.yaml`` inherits from another file and
``a.b=c`` overrides come last. Fields of one objective only live in that objective's ``Settings`` subclass.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from echat.config import Config, read_values, validate
from echat.train.weights.lora import LoraConfig

_LOG = logging.getLogger(__name__)

# In a run folder:
RECIPE_FILE = "recipe.yaml"  # the resolved recipe
CHECKPOINTS = "checkpoints"  # folder of step-N
MODEL = "model"  # folder of the export

OBJECTIVES = ("speech_llm", "encoder_ctc", "tokenizer", "flow", "vocoder")
RENAMED_OBJECTIVES = {"ctc": "encoder_ctc"}  # read for one version


class OptimizerConfig(Config):
    """AdamW and its schedule."""

    lr: float = Field(1e-3, gt=0)  # peak learning rate
    lr_scale: dict[str, float] = {}  # glob over parameter names -> factor on lr; the first match counts
    muon: tuple[str, ...] = ()  # globs as in `trainable`: matrices and kernels for Muon, AdamW the rest
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-8
    weight_decay: float = 0.01  # on matrices only: never on norms, biases and embeddings
    schedule: Literal["cosine", "inverse_sqrt", "constant"] = "cosine"
    warmup_steps: int = Field(100, ge=0)
    final_lr: float = 0.02  # cosine: the fraction of lr at the end of the budget
    clip: float = Field(1.0, gt=0)  # largest global gradient norm


class BudgetConfig(Config):
    """When to stop: at the first of these limits. At least one is set."""

    steps: int | None = Field(None, gt=0)  # optimizer steps
    minutes: float | None = Field(
        None, gt=0
    )  # wall clock over all resumed parts; the schedule follows it too
    epochs: float | None = Field(None, gt=0)  # samples seen / samples of all sources and tasks together

    @model_validator(mode="after")
    def _some_end(self) -> BudgetConfig:
        if self.steps is None and self.minutes is None and self.epochs is None:
            raise ValueError(
                "budget: expected steps, minutes or epochs (or several), found none; set budget.steps=1000"
            )
        return self


class CheckpointConfig(Config):
    """How often checkpoints are written, and how many are kept."""

    every_steps: int = Field(500, gt=0)
    every_minutes: float = Field(5.0, gt=0)  # whichever comes first
    keep: int = Field(2, ge=1)  # newest checkpoints kept
    keep_best: bool = True  # save and keep the one with the lowest validation loss as well


class DecodeConfig(Config):
    """Sample evaluation: decoding of held-out records, rarer and dearer than the validation loss."""

    every_steps: int = Field(500, gt=0)
    records: int = Field(16, gt=0)  # decoded of each validation source and task
    samples: int = Field(2, ge=0)  # kept of them, in full
    voice: str | None = None  # model folder whose token2wav synthesizes speech ids (or mels)


class GuardConfig(Config):
    """Which optimizer steps are skipped besides those with a loss that is not finite, and when a run ends."""

    explosion: float = Field(100.0, gt=1)  # a gradient norm of so many times the usual one
    patience: int = Field(10, ge=1)  # steps skipped in a row that end the run


class Recipe(Config):
    """Fields every objective shares."""

    renamed: ClassVar = {"learn": "trainable", "recompute": "activation_checkpointing"}

    objective: Literal["speech_llm", "encoder_ctc", "tokenizer", "flow", "vocoder"]
    output: str  # run folder: checkpoints/, model/ (the export), metrics.jsonl, recipe.yaml, tensorboard/
    seed: int = 0
    trainable: tuple[str, ...] = ("*",)  # globs over parameter names; a leading ! excludes names again
    lora: LoraConfig | None = None  # adapters are trained instead of what `trainable` names
    init_from: dict[
        str, str
    ] = {}  # module name, or "all" -> source of its weights: see `echat.release.weight_sources`
    device: str = "cpu"
    precision: Literal["bf16", "fp32"] = (
        "bf16"  # autocast of the forward pass; weights and optimizer stay fp32
    )
    threads: int = Field(1, ge=1)  # CPU threads of torch
    accumulate: int = Field(1, ge=1)  # micro-batches per optimizer step (gradient accumulation)
    parallel: Literal["ddp", "fsdp"] = "ddp"  # under torchrun: data parallel, or fully sharded
    shard_ranks: int | None = Field(None, ge=1)  # fsdp: processes that hold one copy together; None: all
    activation_checkpointing: tuple[str, ...] = ()  # globs over Transformer blocks
    compile: bool = False  # Transformer blocks through torch.compile
    optimizer: OptimizerConfig = OptimizerConfig()
    guard: GuardConfig = GuardConfig()
    budget: BudgetConfig
    checkpoint: CheckpointConfig = CheckpointConfig()
    validate_steps: int = Field(500, gt=0)  # steps between two validations, if there are validation batches
    decode: DecodeConfig | None = (
        None  # sample evaluation: decoded outputs on held-out records, measured and kept
    )

    @property
    def trainable_patterns(self) -> tuple[str, ...]:
        """Globs over the names of the trained parameters."""
        return self.trainable if self.lora is None else self.lora.trainable_patterns

    @model_validator(mode="after")
    def _parts_fit(self) -> Recipe:
        if self.parallel == "fsdp" and self.optimizer.muon:
            raise ValueError(
                "parallel: fsdp shards each matrix, and optimizer.muon needs whole ones; "
                "leave optimizer.muon out, or set parallel=ddp"
            )
        if self.parallel == "fsdp" and self.decode is not None:
            raise ValueError(
                "parallel: fsdp shards each matrix, and decode needs a whole model on one rank; "
                "leave decode out, or set parallel=ddp"
            )
        if self.parallel == "ddp" and self.shard_ranks is not None:
            raise ValueError("shard_ranks: expected parallel=fsdp, found ddp, which shards nothing")
        return self


def load_recipe(path: Path | str, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe at ``path`` as the ``Settings`` of its objective; unknown keys are refused."""
    objective = current_objective(read_values(Recipe, path, overrides).get("objective"))
    settings: type[Recipe] = objective_module(objective, path).Settings
    values = read_values(settings, path, overrides) | {"objective": objective}
    return validate(settings, values, str(path))


def current_objective(name: object) -> str:
    """The name of an objective today; the old one is read for one version."""
    new = RENAMED_OBJECTIVES.get(str(name))
    if new is not None:
        _LOG.warning("objective %s is now %s; the old name will not be read by the next version", name, new)
    return new or str(name)


def objective_module(name: str, where: Path | str = "recipe") -> ModuleType:
    """The module ``echat.train.objectives.<name>``."""
    if name not in OBJECTIVES:
        raise ValueError(f"{where}: objective: expected one of {', '.join(OBJECTIVES)}, found {name!r}")
    return importlib.import_module(f"echat.train.objectives.{name}")
