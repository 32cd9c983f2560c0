"""One run in several processes: each learns from its own share of the data, gradients and counts are summed.

``torchrun --nproc-per-node 2 -m echat.train recipe.yaml`` starts them; alone, everything here does nothing.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn


@dataclass(frozen=True)
class Ranks:
    """Which of how many processes this one is."""

    rank: int = 0
    world: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process writes the files and the log."""
        return self.rank == 0

    def sum_gradients(self, module: nn.Module) -> None:
        """Add up the gradients of all processes, in place; the same numbers everywhere afterwards."""
        if self.world == 1:
            return
        learning = [p for p in module.parameters() if p.requires_grad]
        for parameter in learning:
            if parameter.grad is None:  # no sound in this share, for one: its summands are zeros
                parameter.grad = torch.zeros_like(parameter)
        gradients = [p.grad for p in learning if p.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        parts = flat.split([gradient.numel() for gradient in gradients])
        torch._foreach_copy_(gradients, [part.view_as(g) for part, g in zip(parts, gradients)])

    def gather(self, value: Any) -> list[Any]:
        """The value of every process, in order of rank, on every process."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value)
        return values


def join() -> Ranks:
    """Meet the other processes that torchrun started (gloo on CPUs, NCCL on NVIDIA GPUs)."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        return Ranks()
    if not dist.is_initialized():
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    return Ranks(dist.get_rank(), world)


def leave(ranks: Ranks) -> None:
    """Say goodbye to the other processes, when there are any."""
    if ranks.world > 1 and dist.is_initialized():
        dist.destroy_process_group()


def add_up(values: list[Mapping[str, tuple[float, float]]]) -> dict[str, tuple[float, float]]:
    """Sums and counts per name over all processes."""
    total: dict[str, tuple[float, float]] = {}
    for one in values:
        for name, (part, count) in one.items():
            before = total.get(name, (0.0, 0.0))
            total[name] = (before[0] + part, before[1] + count)
    return total
