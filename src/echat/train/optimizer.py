"""The optimizer (AdamW, Muon), learning-rate schedule, and gradient clipping."""

from __future__ import annotations

import fnmatch
import math

import torch
from torch import nn

from echat.train.extras.muon import CombinedOptimizer, Muon
from echat.train.recipe import OptimizerConfig
from echat.train.weights.parameters import match_names


def build_optimizer(module: nn.Module, config: OptimizerConfig, half: bool = False) -> torch.optim.Optimizer:
    """AdamW over the trainable parameters, Muon over those that ``config.muon`` names.

    Parameter groups differ in weight decay and in their factor on the rate. ``half``: Muon in bfloat16.
    """
    adam, muon = _Groups(), _Groups()
    decayed = _decayed_names(module)
    trainable = {name: p for name, p in module.named_parameters() if p.requires_grad}
    matrices = match_names([*trainable], config.muon, "optimizer.muon")
    known = [name for name, _ in module.named_parameters()]  # frozen ones, too
    unmatched = [p for p in config.lr_scale if not any(fnmatch.fnmatchcase(name, p) for name in known)]
    for name, parameter in trainable.items():
        pattern = next((p for p in config.lr_scale if fnmatch.fnmatchcase(name, p)), None)
        scale = config.lr_scale[pattern] if pattern else 1.0
        group = muon if parameter.ndim >= 2 and name in matrices else adam
        group.add(parameter, scale, config.weight_decay if name in decayed else 0.0)
    if unmatched:
        raise ValueError(f"optimizer.lr_scale: {sorted(unmatched)} matches no parameter; check the names")
    optimizers: list[torch.optim.Optimizer] = []
    if adam:
        optimizers.append(torch.optim.AdamW(
            adam.as_list(), lr=config.lr, betas=config.betas, eps=config.eps, fused=True,
        ))  # fmt: skip
    if muon:
        optimizers.append(Muon(muon.as_list(), lr=config.lr, half=half))
    return optimizers[0] if len(optimizers) == 1 else CombinedOptimizer(optimizers)


class _Groups(dict[tuple[float, float], list[nn.Parameter]]):
    """Parameters by (factor on the rate, weight decay)."""

    def add(self, parameter: nn.Parameter, scale: float, decay: float) -> None:
        self.setdefault((scale, decay), []).append(parameter)

    def as_list(self) -> list[dict[str, object]]:
        return [{"params": p, "weight_decay": decay, "scale": scale} for (scale, decay), p in self.items()]


def _decayed_names(module: nn.Module) -> set[str]:
    """Names of parameters that decay: matrices and kernels, except embedding tables."""
    tables = {id(m.weight) for m in module.modules() if isinstance(m, nn.Embedding)}
    return {name for name, p in module.named_parameters() if p.ndim >= 2 and id(p) not in tables}


def learning_rate(config: OptimizerConfig, step: int, progress: float) -> float:
    """Learning rate of optimizer step ``step`` (from 0) when ``progress`` of the budget (0..1) is used up."""
    warmup = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    if config.schedule == "cosine":
        shape = config.final_lr + (1 - config.final_lr) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    elif config.schedule == "inverse_sqrt":
        shape = math.sqrt(max(1, config.warmup_steps) / max(step + 1, config.warmup_steps, 1))
    else:
        shape = 1.0
    return config.lr * warmup * shape


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr * group["scale"]


def gradient_norm(module: nn.Module) -> float:
    """Norm of all gradients together, over all processes where they are sharded."""
    norm = torch.nn.utils.get_total_norm([p.grad for p in module.parameters() if p.grad is not None])
    whole = norm.full_tensor() if hasattr(norm, "full_tensor") else norm  # sharded gradients
    return float(whole)


def clip_gradients(module: nn.Module, mean: float, norm: float, largest: float) -> None:
    """Scale summed gradients to means (times ``mean``) and clip their ``norm`` to ``largest`` at once."""
    gradients = [p.grad for p in module.parameters() if p.grad is not None]
    torch._foreach_mul_(gradients, min(1.0, largest / (norm + 1e-6)) * mean)


def inner_optimizers(optimizer: torch.optim.Optimizer | None) -> list[torch.optim.Optimizer]:
    """The optimizers that hold the state."""
    if optimizer is None:
        return []
    return optimizer.optimizers if isinstance(optimizer, CombinedOptimizer) else [optimizer]
