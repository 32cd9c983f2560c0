"""The Muon optimizer: momentum, orthogonalized for each matrix before it is added (Jordan et al. 2024).

All directions of a matrix get updates of the same size, those of rare inputs too, so small models need fewer
steps for them. An update is as large as one of Adam (Liu et al. 2025, "Muon is scalable for LLM training"),
so rates carry over.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

QUINTIC = (3.4445, -4.7750, 2.0315)  # Newton-Schulz coefficients that raise small singular values fastest
ROUNDS = 5
RMS = 0.2  # root mean square of an Adam update, in units of the rate


class Muon(torch.optim.Optimizer):
    """For matrices (rows, columns) of hidden layers, and kernels (out, in, width) as (out, in x width)."""

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        weight_decay: float = 0.0,
        momentum: float = 0.95,
        half: bool = False,
    ) -> None:
        """``half``: orthogonalize in bfloat16, as always on a GPU: precise enough, and faster where training
        in bfloat16 is."""
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})
        self._half = half
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.ndim < 2:
                    raise ValueError(f"Muon: expected matrices, found the shape {tuple(parameter.shape)}")

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = closure() if closure is not None else None
        for group in self.param_groups:
            alike: dict[torch.Size, list[Tensor]] = defaultdict(list)  # one batched product per shape
            for parameter in group["params"]:
                if parameter.grad is not None:
                    alike[parameter.shape].append(parameter)
            for parameters in alike.values():
                self._move(parameters, group)
        return loss

    def _move(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        momentum = group["momentum"]
        ahead = []
        for parameter in parameters:
            gradient = parameter.grad
            assert gradient is not None
            state = self.state[parameter]
            if not state:
                state["momentum"] = torch.zeros_like(parameter)
            state["momentum"].lerp_(gradient, 1 - momentum)
            ahead.append(gradient.lerp(state["momentum"], momentum))  # Nesterov
        updates = orthogonalize(torch.stack(ahead).flatten(2), self._half)
        size = RMS * math.sqrt(max(updates.shape[1:]))
        for parameter, update in zip(parameters, updates, strict=True):
            parameter.mul_(1 - group["lr"] * group["weight_decay"])
            parameter.add_(update.view_as(parameter), alpha=-group["lr"] * size)


def orthogonalize(matrices: Tensor, half: bool = False) -> Tensor:
    """Matrices (count, rows, columns) with the same singular vectors and singular values near 1."""
    a, b, c = QUINTIC
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    if half or x.is_cuda:
        x = x.bfloat16()  # enough for this iteration
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp_min(1e-7)
    for _ in range(ROUNDS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).to(matrices.dtype)


class CombinedOptimizer(torch.optim.Optimizer):
    """Several optimizers of different parameters as one: steps, rates and state."""

    def __init__(self, optimizers: list[torch.optim.Optimizer]) -> None:
        self.optimizers = optimizers
        groups = [group for optimizer in optimizers for group in optimizer.param_groups]
        super().__init__(groups, {})
        self.param_groups = groups  # the same objects: a rate set here holds there

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = closure() if closure is not None else None
        for optimizer in self.optimizers:
            optimizer.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        return {"optimizers": [optimizer.state_dict() for optimizer in self.optimizers]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for optimizer, state in zip(self.optimizers, state_dict["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        self.param_groups = [group for optimizer in self.optimizers for group in optimizer.param_groups]
