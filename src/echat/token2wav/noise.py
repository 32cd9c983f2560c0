"""Deterministic noise of a frame: the same seed and frame index give the same numbers in any piece.

A stream computes some frames twice, at the end of one piece and in the next. Both times they must start from
the same noise, or the two would be different sounds.
"""

from typing import Literal

import torch
from torch import Tensor

BLOCK = 32  # frames of one generator call; one generator is started per block
_SALTS = {"flow": 1, "source": 2, "phase": 3}
_64_BITS = (1 << 64) - 1


def frame_noise(
    seed: int, use: Literal["flow", "source"], rows: int, start: int, stop: int, per_frame: int = 1
) -> Tensor:
    """Standard normal `(1, rows, (stop - start) * per_frame)` of the frames `start .. stop - 1`.

    Frames may be negative: a voice prompt lies before frame 0.
    """
    if stop <= start:
        return torch.zeros(1, rows, 0)
    blocks = range(start // BLOCK, (stop - 1) // BLOCK + 1)
    sampled = [
        torch.randn(rows, BLOCK * per_frame, generator=block_generator(seed, use, block)) for block in blocks
    ]
    first = (start - blocks[0] * BLOCK) * per_frame
    return torch.cat(sampled, dim=1)[None, :, first : first + (stop - start) * per_frame]


def seeded_generator(seed: int | None) -> torch.Generator:
    """A random number generator that starts at any whole number, or anew for None; always on the CPU."""
    generator = torch.Generator()
    if seed is None:
        generator.seed()
    else:  # what torch takes for a seed stays as it is
        generator.manual_seed(seed if -(2**63) <= seed < 2**64 else seed & _64_BITS)
    return generator


def block_generator(seed: int, use: Literal["flow", "source", "phase"], block: int = 0) -> torch.Generator:
    """A generator of its own for every seed, use and block."""
    mixed = _scramble(_scramble(_scramble(seed) + _SALTS[use]) + block)
    return torch.Generator().manual_seed(mixed >> 32)  # the CPU's generator starts from 32 bits


def _scramble(value: int) -> int:
    """Neighbouring integers to unrelated ones (the finaliser of SplitMix64)."""
    value = (value + 0x9E3779B97F4A7C15) & _64_BITS
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _64_BITS
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _64_BITS
    return value ^ (value >> 31)
