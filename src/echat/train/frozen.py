"""What stands still while a model learns: checkpoints leave it out, and know it again by its fingerprint.

Adapters beside 3 billion weights are 100 MB, the weights themselves 7 GB, and they are in `init_from` anyway.
"""

from __future__ import annotations

import hashlib

import torch
from torch import nn

from echat.checkpoint import CheckpointError


def frozen_names(module: nn.Module) -> set[str]:
    """Names in the state dict of the parameters that do not learn, all names of a shared one."""
    state = module.state_dict(keep_vars=True)
    return {
        name
        for name, tensor in state.items()
        if isinstance(tensor, nn.Parameter) and not tensor.requires_grad
    }


def fingerprint(module: nn.Module) -> str:
    """Of the parameters that do not learn: names, shapes, values. Empty when all learn."""
    state, digest = module.state_dict(), hashlib.sha256()
    names = sorted(frozen_names(module))
    for name in names:
        tensor = state[name]
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype} {torch.hash_tensor(tensor)}\n".encode())
    return digest.hexdigest() if names else ""


def refuse_others(where: object, stored: str, here: str) -> None:
    """Raise CheckpointError when a checkpoint belongs to other standing weights than those loaded here.

    Earlier versions stored all weights and no fingerprint: an empty one fits.
    """
    if stored and stored != here:
        raise CheckpointError(
            f"{where}: expected the weights that stood still when it was written, found others "
            f"(fingerprint {stored[:12]}, here {here[:12] or 'none'}); init_from or learn has changed since: "
            "give them back what they were, or begin a new run"
        )
