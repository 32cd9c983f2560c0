"""Low-rank adapters (Hu et al. 2021, "LoRA"; Liu et al. 2024, "DoRA"), through peft.

The weights are frozen; beside each chosen linear layer two low-rank matrices are trained. At the end they are
merged into the layer, so that an ordinary model is exported, as large and as fast as before.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from pydantic import Field
from torch import nn

from echat.config import Config
from echat.train.weights.parameters import match_names

ADAPTERS = "*.lora_*"  # names of the parameters that peft adds


class LoraConfig(Config):
    """Which linear layers get an adapter, and of what size."""

    renamed: ClassVar = {"also": "modules_to_save"}

    rank: int = Field(16, gt=0)  # of the update of one layer
    alpha: float = Field(32.0, gt=0)  # the update is multiplied by alpha / rank
    dropout: float = Field(0.0, ge=0, lt=1)  # on the input of the adapters
    dora: bool = False  # train the norm of each row apart from its direction, too
    targets: tuple[str, ...] = ("*",)  # globs over names of linear layers, !glob excludes; all by default
    modules_to_save: tuple[str, ...] = ()  # globs over names of parameters trained in full beside them

    @property
    def trainable_patterns(self) -> tuple[str, ...]:
        """Globs over the trained parameters, in the form of `trainable` in a recipe."""
        return (ADAPTERS, *self.modules_to_save)


def add_adapters(module: nn.Module, config: LoraConfig) -> list[str]:
    """Add low-rank adapters to the chosen linear layers, in place; returns their names.

    The outputs stay what they were: an update begins at zero. Raises ValueError when a glob matches no linear
    layer, or nothing is left.
    """
    from peft import LoraConfig as PeftConfig
    from peft import inject_adapter_in_model

    chosen = match_layers(module, config.targets)
    holder = nn.Module()  # peft asks a model for the `config` of transformers, which ours is not
    holder.module = module
    inject_adapter_in_model(
        PeftConfig(
            r=config.rank,
            lora_alpha=config.alpha,  # type: ignore[arg-type]
            lora_dropout=config.dropout,
            use_dora=config.dora,
            target_modules=[f"module.{name}" for name in chosen],
        ),
        holder,
    )
    return chosen


def match_layers(module: nn.Module, patterns: Sequence[str]) -> list[str]:
    """Names of the linear layers that globs include and ``!glob`` excludes again, in the order written."""
    names = [name for name, child in module.named_modules() if type(child) is nn.Linear]
    chosen = match_names(names, patterns, "lora.targets", "linear layer")
    if not chosen:
        raise ValueError(f"lora.targets: {list(patterns)} selects no layer; name at least one")
    return [name for name in names if name in chosen]


def merge_adapters(module: nn.Module) -> None:
    """Merge every adapter into its layer and remove it, in place. Nothing happens where there are none."""
    layers = [(name, child) for name, child in module.named_modules() if _is_adapter(child)]
    for name, layer in layers:
        layer.merge(safe_merge=True)  # type: ignore[operator]
        parent, _, own = name.rpartition(".")
        setattr(module.get_submodule(parent), own, layer.get_base_layer())  # type: ignore[operator]


def _is_adapter(module: nn.Module) -> bool:
    return hasattr(module, "lora_A") and hasattr(module, "get_base_layer")
