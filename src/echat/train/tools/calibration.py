"""Calibration for quantization: second moments of what the linear layers of a model read in training data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from echat.train.distributed import seed_everything
from echat.train.export import build_objective
from echat.train.recipe import load_recipe
from echat.train.weights.init_weights import WHOLE


def second_moments(
    recipe_path: Path, model: Path, batches: int, wanted: Callable[[str], bool], overrides: Sequence[str] = ()
) -> dict[str, Tensor]:
    """Name of a weight -> sum of x xᵀ (in, in) over the first `batches` of the recipe's training data.

    `model` is the folder whose weights are to be quantized; `wanted` chooses weights by name.
    """
    start = [f"init_from={{{WHOLE}: {model}}}", "model=null", "tokenizer=null", "lora=null"]
    recipe = load_recipe(recipe_path, [*start, *overrides])
    seed_everything(recipe.seed)
    objective = build_objective(recipe)
    module = objective.module.eval()
    with SecondMoments(module, wanted) as found, torch.no_grad():
        for _ in range(batches):
            objective.loss(objective.batches.next())
    objective.batches.close()
    return found.moments


class SecondMoments:
    """Watches the linear layers of a module while the block lasts; layers of one input share their sum."""

    def __init__(self, module: nn.Module, wanted: Callable[[str], bool]) -> None:
        self.moments: dict[str, Tensor] = {}
        self._layers = {f"{name}.weight": m for name, m in module.named_modules() if type(m) is nn.Linear}
        self._layers = {name: layer for name, layer in self._layers.items() if wanted(name)}
        self._shared: set[str] = set()  # read what the layer before them read
        self._last: tuple[str, Any] = ("", None)
        self._handles: list[Any] = []

    def __enter__(self) -> SecondMoments:
        for name, layer in self._layers.items():
            self._handles.append(layer.register_forward_pre_hook(self._hook(name)))
        return self

    def __exit__(self, *error: object) -> None:
        self._last = ("", None)
        for handle in self._handles:
            handle.remove()

    def _hook(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def add(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            last, x = self._last[0], inputs[0]
            if name not in self.moments and x is self._last[1]:
                self.moments[name] = self.moments[last]
                self._shared.add(name)
            if name in self._shared:
                return
            self._last = (name, x)
            rows = x.detach().float().reshape(-1, x.shape[-1])
            found = self.moments.setdefault(name, torch.zeros(rows.shape[1], rows.shape[1]))
            found.addmm_(rows.T, rows)

        return add
