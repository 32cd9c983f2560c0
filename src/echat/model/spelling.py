"""What frames spell: their nearness to the rows of the text table.

Legend: dim width of the language model, V text ids.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

SCALE = 12.0  # score of a frame that points where a text vector points
SHORTEST = 1e-12  # length of a row that is taken for zero


def spelled_scores(frames: Tensor, table: Tensor, lengths: Tensor) -> Tensor:
    """Scores (..., V) of frames (..., dim) for the rows of the text table (V, dim), before the softmax.

    The score is that of the angle, so the only way to be sure of an id is to point where its row points.
    `lengths` (V,) are those of the rows: they stay the same, and a large table is not copied for each sound.
    """
    directions = F.normalize(frames.float(), dim=-1).to(table.dtype)
    return F.linear(directions, table).float() * (SCALE / lengths)


def row_lengths(table: Tensor) -> Tensor:
    """(V,) float32."""
    return table.norm(dim=-1, dtype=torch.float32).clamp_min(SHORTEST)
