"""Transformer blocks, the units of work: computed again in the backward pass, compiled, shared out."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint

from echat.train.names import choose

_BLOCK = re.compile(r"(.*\.)?(blocks|layers)\.\d+")


def transformer_blocks(module: nn.Module) -> dict[str, nn.Module]:
    """Name -> numbered members of lists called ``blocks`` or ``layers``, wherever they lie."""
    return {name: part for name, part in module.named_modules() if _BLOCK.fullmatch(name)}


def work_blocks_over(module: nn.Module, recompute: Sequence[str], compiled: bool) -> None:
    """Compile all blocks if asked to, and let those that globs name forget their activations.

    A block that forgets keeps its input only, and computes again when gradients come back: a third more work
    for a fraction of the memory.
    """
    blocks = transformer_blocks(module)
    forgetful = choose([*blocks], recompute, "recompute", "block")
    for name, block in blocks.items():
        if compiled:
            block.compile(dynamic=True)
        if name in forgetful:
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)  # type: ignore[method-assign]
