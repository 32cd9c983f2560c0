"""Parallel training (DDP, FSDP2): forward and backward passes, gradients averaged over all processes.

``ddp``: every process holds the whole model; gradients travel while the backward pass is still computing
(``DistributedDataParallel``). ``fsdp``: every process keeps a shard of weights, gradients and optimizer
state; a Transformer block is gathered only while it computes (FSDP2, ``fully_shard``). With ``shard_ranks``
that many processes (one machine, say) hold one copy together, and there are several (hybrid sharding).

Each process computes a sum over its targets. The averages become a mean over all targets, whatever each
process computed, when the trainer multiplies by the number of processes and divides by the targets of all.
"""

from __future__ import annotations

import contextlib
import gc
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from echat.train.distributed import Ranks
from echat.train.objective import AnyBatch, Loss, Objective
from echat.train.recipe import Recipe
from echat.train.weights.parameters import match_names

Parts = Mapping[str, tuple[Tensor | float, float]]


class LossModule(nn.Module):
    """An objective as a module whose forward is its loss: what DDP and FSDP2 can wrap."""

    def __init__(self, objective: Objective) -> None:
        super().__init__()
        self.module = objective.module
        self._loss = objective.loss

    def forward(self, batch: AnyBatch) -> tuple[Tensor, float, Parts]:
        loss = self._loss(batch)
        total = loss.total
        if torch.is_grad_enabled() and not total.requires_grad:  # but other processes wait
            total = total + 0.0 * next(p for p in self.parameters() if p.requires_grad).sum()
        parts = {name: (_plain(part), size) for name, (part, size) in loss.parts.items()}
        return total, loss.count, parts


def _plain(part: Tensor | float) -> Tensor | float:
    return part.detach() if isinstance(part, Tensor) else part


class ParallelModel:
    """The module of an objective, wrapped for parallel training in this process together with the others.

    Moves the module (or its shard) to the device, so build the optimizer afterwards; `requires_grad` must be
    set before.
    """

    def __init__(self, objective: Objective, recipe: Recipe, ranks: Ranks, device: torch.device) -> None:
        self.device, self._half = device, recipe.precision == "bf16"
        self._module = objective.module
        if recipe.compile:
            compile_blocks(objective.module)
        apply_activation_checkpointing(objective.module, recipe.activation_checkpointing)
        self._loss = LossModule(objective)
        self._ddp: nn.parallel.DistributedDataParallel | None = None
        if ranks.world > 1 and recipe.parallel == "fsdp":
            shard(self._loss, device, ranks.world, recipe.shard_ranks, self._half)
        else:
            self._loss.to(device)
        if ranks.world > 1 and recipe.parallel == "ddp":
            self._ddp = _ddp(self._loss)
        self.train()

    def forward_backward(self, batch: AnyBatch, last: bool = True) -> Loss:
        """Add the gradients of one micro-batch; those of the ``last`` one of a step are exchanged."""
        waits = self._ddp.no_sync() if self._ddp is not None and not last else contextlib.nullcontext()
        with waits:
            with self._autocast():
                total, count, parts = (self._ddp or self._loss)(batch.to(self.device))
            total.backward()
        return Loss(total.detach(), count, parts)

    @torch.no_grad()
    def eval_loss(self, batch: AnyBatch) -> Loss:
        """The loss of a batch and nothing else. With ``fsdp`` all processes call it at the same time."""
        with self._autocast():
            return Loss(*self._loss(batch.to(self.device)))

    def train(self) -> None:
        """Training mode, but for frozen parts, which stay in eval mode, without dropout.

        No graph is kept of what is computed before the first trained part: nothing there requires gradients.
        """
        self._module.train()
        for part in self._module.modules():
            weights = list(part.parameters())
            if weights and not any(weight.requires_grad for weight in weights):
                part.eval()

    def eval(self) -> None:
        """Eval mode for all parts."""
        self._module.eval()

    def close(self) -> None:
        """Release DDP before `distributed.shutdown_distributed`, which could otherwise wait for ever."""
        self._ddp = None
        gc.collect()

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self._half)


def _ddp(module: nn.Module) -> nn.parallel.DistributedDataParallel:
    with warnings.catch_warnings():  # newer versions of torch have another name for it, older ones only this
        warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
        return nn.parallel.DistributedDataParallel(
            module,
            broadcast_buffers=False,  # position tables are alike everywhere
            find_unused_parameters=True,  # such as those of the encoder in a batch without audio
            gradient_as_bucket_view=True,
        )


def shard(
    module: nn.Module, device: torch.device, world: int, shard_ranks: int | None = None, half: bool = False
) -> None:
    """FSDP2 over a module: a group per Transformer block, one for all the rest.

    Weights and sums of gradients stay in float32; with ``half`` blocks are gathered and compute in bfloat16.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

    shard_size = shard_ranks or world
    if world % shard_size:
        raise ValueError(f"shard_ranks: expected a divisor of the {world} processes, found {shard_size}")
    shape = {"copies": world // shard_size, "shares": shard_size} if shard_size < world else {"shares": world}
    mesh = init_device_mesh(device.type, tuple(shape.values()), mesh_dim_names=tuple(shape))
    policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32) if half else MixedPrecisionPolicy()
    for block in reversed(transformer_blocks(module).values()):
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(module, mesh=mesh, mp_policy=replace(policy, cast_forward_inputs=False))
    assert isinstance(module, FSDPModule)
    if not hasattr(module, "set_reduce_scatter_unused_params"):
        raise ValueError(
            f"parallel: fsdp expects torch 2.13 or later, found {torch.__version__}; set parallel=ddp"
        )
    module.set_reduce_scatter_unused_params(True)  # such as the speech head in a batch of text


# --- Transformer blocks: the units of activation checkpointing, compilation and sharding.

_BLOCK = re.compile(r"(.*\.)?(blocks|layers)\.\d+")


def transformer_blocks(module: nn.Module) -> dict[str, nn.Module]:
    """Name -> numbered members of lists called ``blocks`` or ``layers``, wherever they lie."""
    return {name: part for name, part in module.named_modules() if _BLOCK.fullmatch(name)}


def compile_blocks(module: nn.Module) -> None:
    """``torch.compile`` for every Transformer block, in place."""
    for block in transformer_blocks(module).values():
        block.compile(dynamic=True)


def apply_activation_checkpointing(module: nn.Module, patterns: Sequence[str]) -> None:
    """Activation (gradient) checkpointing of the Transformer blocks that globs name, in place.

    Such a block keeps its input only and is computed again in the backward pass: a third more work for a
    fraction of the memory.
    """
    blocks = transformer_blocks(module)
    for name in match_names([*blocks], patterns, "activation_checkpointing", "block"):
        block = blocks[name]
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)  # type: ignore[method-assign]
