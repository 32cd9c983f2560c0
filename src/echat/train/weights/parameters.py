"""Parameters and layers by their names, with globs."""

from __future__ import annotations

import fnmatch
import hashlib
from collections.abc import Sequence

import torch
from torch import nn

from echat.checkpoint import CheckpointError


def match_names(names: Sequence[str], patterns: Sequence[str], key: str, what: str = "parameter") -> set[str]:
    """The names that globs take in and ``!glob`` takes out again, in the order written.

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
    """Switch gradients on for the parameters the patterns name, off for all others; returns the names.

    ``encoder.*`` takes in, ``!encoder.embed.*`` takes out again, in the order written.
    """
    names = [name for name, _ in module.named_parameters()]
    chosen = match_names(names, patterns, "trainable")
    if not chosen:
        raise ValueError(f"trainable: {list(patterns)} selects no parameter; name at least one module")
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(name in chosen)
    return [name for name in names if name in chosen]


# --- What stands still while a model learns: checkpoints leave it out, and know it again by its fingerprint.


def frozen_names(module: nn.Module) -> set[str]:
    """Names in the state dict of the parameters that do not learn, all names of a shared one."""
    state = module.state_dict(keep_vars=True)
    return {
        name
        for name, tensor in state.items()
        if isinstance(tensor, nn.Parameter) and not tensor.requires_grad
    }


def frozen_hash(module: nn.Module) -> str:
    """Of the parameters that do not learn: names, shapes, values. Empty when all learn."""
    state, digest = module.state_dict(), hashlib.sha256()
    names = sorted(frozen_names(module))
    for name in names:
        tensor = state[name]
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype} {torch.hash_tensor(tensor)}\n".encode())
    return digest.hexdigest() if names else ""


def check_frozen(where: object, stored: str, here: str) -> None:
    """Raise CheckpointError when a checkpoint belongs to other standing weights than those loaded here.

    Earlier versions stored all weights and no fingerprint: an empty one fits.
    """
    if stored and stored != here:
        raise CheckpointError(
            f"{where}: expected the weights that stood still when it was written, found others "
            f"(fingerprint {stored[:12]}, here {here[:12] or 'none'}); init_from or trainable has "
            "changed since: give them back what they were, or begin a new run"
        )
