"""What frames spell: their nearness to the rows of the text table.

Legend: dim width of the language model, V text ids.
"""

import torch.nn.functional as F
from torch import Tensor

SCALE = 12.0  # score of a frame that points where a text vector points


def spelled_scores(frames: Tensor, table: Tensor) -> Tensor:
    """Scores (..., V) of frames (..., dim) for the rows of the text table (V, dim), before the softmax.

    The score is that of the angle, so the only way to be sure of an id is to point where its row points.
    """
    return SCALE * F.linear(F.normalize(frames.float(), dim=-1), F.normalize(table.float(), dim=-1))
