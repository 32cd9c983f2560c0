"""Selection of parameters by globs over their names; trainable and frozen parameters."""

from __future__ import annotations

import fnmatch
import hashlib
from collections.abc import Sequence

import torch
from torch import nn

from echat.checkpoint import CheckpointError


def match_names(names: Sequence[str], patterns: Sequence[str], key: str, what: str = "parameter") -> set[str]:
    """The names that globs include and ``!glob`` excludes again, in the order written.

    Raises ValueError, which names the recipe's ``key``, for a glob that matches nothing.
    """
    chosen: set[str] = set()
    for pattern in patterns:
        hits = set(fnmatch.filter(names, pattern.removeprefix("!")))
        if not hits:
            tops = ", ".join(sorted({name.split(".")[0] for name in names})) or "nothing"
            raise ValueError(f"{key}: pattern {pattern!r} matches no {what}; {what}s start with {tops}")
        chosen = chosen - hits if pattern.startswith("!") else chosen | hits
    return chosen


def set_trainable(module: nn.Module, patterns: Sequence[str]) -> list[str]:
    """Set ``requires_grad`` of the parameters that the patterns name, freeze all others; returns the names.

    ``encoder.*`` includes, ``!encoder.embed.*`` excludes again, in the order written.
    """
    names = [name for name, _ in module.named_parameters()]
    chosen = match_names(names, patterns, "trainable")
    if not chosen:
        raise ValueError(f"trainable: {list(patterns)} selects no parameter; name at least one module")
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(name in chosen)
    return [name for name in names if name in chosen]


# --- Frozen parameters: checkpoints leave them out and hold a hash of them.


def frozen_names(module: nn.Module) -> set[str]:
    """Names in the state dict of the frozen parameters, all names of a shared one."""
    state = module.state_dict(keep_vars=True)
    return {
        name
        for name, tensor in state.items()
        if isinstance(tensor, nn.Parameter) and not tensor.requires_grad
    }


def frozen_hash(module: nn.Module) -> str:
    """A hash of the names, shapes and values of the frozen parameters. Empty when there are none."""
    state, digest = module.state_dict(), hashlib.sha256()
    names = sorted(frozen_names(module))
    for name in names:
        tensor = state[name]
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype} {torch.hash_tensor(tensor)}\n".encode())
    return digest.hexdigest() if names else ""


def check_frozen(where: object, stored: str, here: str) -> None:
    """Raise CheckpointError when a checkpoint belongs to other frozen weights than those loaded here.

    Earlier versions stored all weights and no hash: an empty one is accepted.
    """
    if stored and stored != here:
        raise CheckpointError(
            f"{where}: expected the frozen weights of the time it was written, found others "
            f"(hash {stored[:12]}, here {here[:12] or 'none'}); init_from or trainable has "
            "changed since: give them back what they were, or begin a new run"
        )
