"""The velocity field of flow matching: a one-dimensional U-Net of residual convolutions and transformers.

Legend: batch, time = mel frames, bins = 80, width = channels inside. A mask is `(batch, 1, time)` of ones and
zeros; None means every frame is valid, which is faster and the same.
"""

import math
from itertools import pairwise
from typing import cast

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from echat.config import Config
from echat.token2wav.token_encoder import MaskedGroupNorm

GROUPS = 8  # of every GroupNorm here


class EstimatorConfig(Config):
    """Sizes of the U-Net; the defaults are those of the released flow."""

    in_channels: int = Field(320, description="noisy mel + regulated ids + speaker + prompt mel")
    out_channels: int = Field(80, description="mel bins")
    channels: tuple[int, ...] = Field(
        (256, 256), description="width of each level; each but the last halves time"
    )
    attention_head_dim: int = 64
    num_heads: int = 8
    n_blocks: int = Field(4, description="transformers behind each residual block")
    num_mid_blocks: int = 12
    masked_norm: bool = Field(False, description="keep padding out of the norms (the released flow does not)")

    @model_validator(mode="after")
    def _groups_divide(self) -> "EstimatorConfig":
        if not self.channels or any(width % GROUPS for width in self.channels):
            raise ValueError(f"channels: expected multiples of {GROUPS}, found {self.channels}")
        return self


class TimeEmbedding(nn.Module):
    """Flow time in [0, 1] -> vector: sinusoids of 1000 t, then two linears."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.dim = dim
        self.linear_1 = nn.Linear(dim, hidden)
        self.linear_2 = nn.Linear(hidden, hidden)

    def forward(self, t: Tensor) -> Tensor:
        half = self.dim // 2
        rate = torch.exp(
            torch.arange(half, device=t.device, dtype=torch.float32) * -(math.log(10000) / (half - 1))
        )
        angle = 1000 * t[:, None].float() * rate
        x = torch.cat([angle.sin(), angle.cos()], dim=-1).to(self.linear_1.weight.dtype)
        return self.linear_2(F.silu(self.linear_1(x)))


def _masked(x: Tensor, mask: Tensor | None) -> Tensor:
    return x if mask is None else x * mask


class ConvNormBlock(nn.Module):
    """Convolution, group norm, Mish."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.block = nn.ModuleList([nn.Conv1d(n_in, n_out, 3, padding=1), MaskedGroupNorm(GROUPS, n_out)])

    def forward(self, x: Tensor, mask: Tensor | None, norm_mask: Tensor | None) -> Tensor:
        conv, norm = self.block
        return _masked(F.mish(norm(conv(_masked(x, mask)), norm_mask)), mask)


class UNetResBlock(nn.Module):
    """Two blocks with the flow time added between them, and a 1 x 1 shortcut."""

    def __init__(self, n_in: int, n_out: int, time_dim: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Mish(), nn.Linear(time_dim, n_out))
        self.block1 = ConvNormBlock(n_in, n_out)
        self.block2 = ConvNormBlock(n_out, n_out)
        self.res_conv = nn.Conv1d(n_in, n_out, 1)

    def forward(self, x: Tensor, mask: Tensor | None, norm_mask: Tensor | None, time: Tensor) -> Tensor:
        h = self.block1(x, mask, norm_mask) + self.mlp(time)[..., None]
        return self.block2(h, mask, norm_mask) + self.res_conv(_masked(x, mask))


class Attention(nn.Module):
    """Multi-head attention; queries, keys and values without bias."""

    def __init__(self, width: int, heads: int, head_dim: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(width, heads * head_dim, bias=False)
        self.to_k = nn.Linear(width, heads * head_dim, bias=False)
        self.to_v = nn.Linear(width, heads * head_dim, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(heads * head_dim, width)])

    def forward(self, x: Tensor, bias: Tensor | None) -> Tensor:
        q, k, v = (
            to(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for to in (self.to_q, self.to_k, self.to_v)
        )
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return self.to_out[0](out.transpose(1, 2).flatten(2))


class Projection(nn.Module):
    """Linear and exact GELU (its own module because released names say so)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, hidden)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.proj(x))


class GELUFeedForward(nn.Module):
    """Four times as wide inside."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.ModuleList([Projection(width, 4 * width), nn.Identity(), nn.Linear(4 * width, width)])

    def forward(self, x: Tensor) -> Tensor:
        return self.net[2](self.net[0](x))


class UNetTransformer(nn.Module):
    """Attention and feed-forward, each on a normalised input and added."""

    def __init__(self, width: int, heads: int, head_dim: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn1 = Attention(width, heads, head_dim)
        self.norm3 = nn.LayerNorm(width)
        self.ff = GELUFeedForward(width)

    def forward(self, x: Tensor, bias: Tensor | None) -> Tensor:
        x = x + self.attn1(self.norm1(x), bias)
        return x + self.ff(self.norm3(x))


class UNetStage(nn.ModuleList):
    """A residual block, its transformers and, outside the middle, a convolution on to the next level."""

    def __init__(
        self, config: "EstimatorConfig", n_in: int, n_out: int, lead: nn.Module | None = None
    ) -> None:
        transformers = nn.ModuleList(
            UNetTransformer(n_out, config.num_heads, config.attention_head_dim)
            for _ in range(config.n_blocks)
        )
        parts = [UNetResBlock(n_in, n_out, 4 * config.channels[0]), transformers]
        super().__init__(parts if lead is None else [*parts, lead])

    def forward(self, x: Tensor, mask: Tensor | None, norm_mask: Tensor | None, time: Tensor) -> Tensor:
        """Through the residual block and the transformers."""
        x = self[0](x, mask, norm_mask, time).transpose(1, 2)
        bias = None if mask is None else ((1 - mask) * -1e10).to(x.dtype)[:, None]
        for transformer in cast(nn.ModuleList, self[1]):
            x = transformer(x, bias)
        return x.transpose(1, 2)

    def lead(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """On to the next level."""
        return self[2](_masked(x, mask))


class Resample(nn.Module):
    """A strided convolution that halves time, or a transposed one that doubles it."""

    def __init__(self, conv: nn.Module) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Estimator(nn.Module):
    """Velocity at a point of the flow, `(batch, bins, time)`."""

    def __init__(self, config: EstimatorConfig) -> None:
        super().__init__()
        self.config = config
        first = config.channels[0]
        self.time_mlp = TimeEmbedding(config.in_channels, 4 * first)
        self.down_blocks = nn.ModuleList()
        self.mid_blocks = nn.ModuleList()
        self.up_blocks = nn.ModuleList()
        n_in = config.in_channels
        for level, width in enumerate(config.channels):
            lead: nn.Module = nn.Conv1d(width, width, 3, padding=1)
            if level < len(config.channels) - 1:
                lead = Resample(nn.Conv1d(width, width, 3, 2, padding=1))
            self.down_blocks.append(UNetStage(config, n_in, width, lead))
            n_in = width
        for _ in range(config.num_mid_blocks):
            self.mid_blocks.append(UNetStage(config, n_in, n_in))
        widths = (*reversed(config.channels), first)
        for level, (n_in, width) in enumerate(pairwise(widths)):
            lead = nn.Conv1d(width, width, 3, padding=1)
            if level < len(config.channels) - 1:
                lead = Resample(nn.ConvTranspose1d(width, width, 4, 2, 1))
            self.up_blocks.append(UNetStage(config, 2 * n_in, width, lead))
        self.final_block = ConvNormBlock(first, first)
        self.final_proj = nn.Conv1d(first, config.out_channels, 1)

    def forward(
        self, x: Tensor, mask: Tensor | None, mu: Tensor, t: Tensor, spks: Tensor, cond: Tensor
    ) -> Tensor:
        """Velocity of `x (batch, bins, time)` at times `t (batch,)`.

        `mu` and `cond` are shaped like `x`; `spks (batch, bins)` holds for all frames.
        """
        time = self.time_mlp(t)
        x = torch.cat([x, mu, spks[..., None].expand(-1, -1, x.shape[2]), cond], dim=1)
        masks, skips = [mask], []
        for level, stage in enumerate(cast(list[UNetStage], self.down_blocks)):
            x = stage(x, masks[-1], self._norm_mask(masks[-1]), time)
            skips.append(x)
            x = stage.lead(x, masks[-1])
            if level < len(self.down_blocks) - 1:
                masks.append(None if masks[-1] is None else masks[-1][:, :, ::2])
        for stage in cast(list[UNetStage], self.mid_blocks):
            x = stage(x, masks[-1], self._norm_mask(masks[-1]), time)
        for stage in cast(list[UNetStage], self.up_blocks):
            skip, level_mask = skips.pop(), masks.pop()
            x = torch.cat([x[:, :, : skip.shape[2]], skip], dim=1)
            x = stage.lead(stage(x, level_mask, self._norm_mask(level_mask), time), level_mask)
        x = self.final_block(x, mask, self._norm_mask(mask))
        return _masked(self.final_proj(_masked(x, mask)), mask)

    def _norm_mask(self, mask: Tensor | None) -> Tensor | None:
        return mask if self.config.masked_norm else None
