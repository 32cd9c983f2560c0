"""The adapter (modality projector): a small Transformer between speech encoder and language model.

Legend: B batch, D frames of the subsampled encoder (80 ms), dim width.
"""

import math

from pydantic import Field
from torch import Tensor, nn

from echat.config import Config
from echat.model.blocks import (
    LAYER_NORM_EPS,
    MOST_BLOCKS,
    MOST_FRAMES,
    PositionTable,
    Rounding,
    TransformerBlock,
    keep_mask,
)


class AdapterConfig(Config):
    """Shape of the adapter; the defaults are the released size."""

    dim: int = Field(1024, gt=0)  # model width
    blocks: int = Field(4, gt=0, le=MOST_BLOCKS)  # Transformer blocks
    heads: int = Field(4, gt=0)  # attention heads
    ffn: int = Field(2560, gt=0)  # hidden width of the feed-forward layers
    max_frames: int = Field(5000, gt=0, le=MOST_FRAMES)  # rows of the position table, 80 ms each
    dropout: float = 0.1  # in training only
    position_rounding: Rounding = ()  # of the position table that the weights were trained with


class Adapter(nn.Module):
    """Linear and norm, positions added to the input scaled by sqrt(dim), pre-norm blocks with ReLU, a final
    norm."""

    def __init__(self, config: AdapterConfig, input_dim: int, frame_seconds: float) -> None:
        super().__init__()
        self.input = nn.Linear(input_dim, config.dim)
        self.input_norm = nn.LayerNorm(config.dim, eps=LAYER_NORM_EPS)
        self.scale = math.sqrt(config.dim)
        self.positions = PositionTable(
            config.max_frames, config.dim, "interleaved", frame_seconds, config.position_rounding
        )
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(
            TransformerBlock(
                config.dim, config.heads, config.ffn, "relu", key_bias=True, dropout=config.dropout
            )
            for _ in range(config.blocks)
        )
        self.final_norm = nn.LayerNorm(config.dim, eps=LAYER_NORM_EPS)
        if not self.input_norm.weight.is_meta:  # fresh: or what the blocks add is lost beside the scale
            nn.init.constant_(self.input_norm.weight, 1.0 / self.scale)

    def embed(self, frames: Tensor) -> Tensor:
        """(B, D, input_dim) -> (B, D, dim), before the first block."""
        frames = self.dropout(self.input_norm(self.input(frames)))
        return self.dropout(self.positions(frames * self.scale))

    def forward(self, frames: Tensor, lens: Tensor) -> Tensor:
        """(B, D, input_dim), lens (B,) valid frames -> (B, D, dim)."""
        frames = self.embed(frames)
        keep = keep_mask(lens, frames.shape[1])
        mask = None if keep is None else keep[:, None, None, :]
        for block in self.blocks:
            frames = block(frames, mask)
        return self.final_norm(frames)
