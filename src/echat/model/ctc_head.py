"""CTC head on the text embedding table: logits are scaled cosine similarities of frames and table rows.

Legend: dim width of the language model, V text ids.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

LOGIT_SCALE = 12.0  # score of a frame that points where a text vector points
MIN_NORM = 1e-12  # length of a row that is taken for zero


def ctc_logits(frames: Tensor, table: Tensor, norms: Tensor) -> Tensor:
    """Scores (..., V) of frames (..., dim) for the rows of the text table (V, dim), before the softmax.

    The score is that of the angle, so the only way to be sure of an id is to point where its row points.
    `norms` (V,) are those of the rows: they stay the same, and a large table is not copied for each sound.
    """
    directions = F.normalize(frames.float(), dim=-1).to(table.dtype)
    return F.linear(directions, table).float() * (LOGIT_SCALE / norms)


def row_norms(table: Tensor) -> Tensor:
    """(V,) float32."""
    return table.norm(dim=-1, dtype=torch.float32).clamp_min(MIN_NORM)
