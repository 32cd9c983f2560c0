"""Encoder of the flow: a conformer over speech ids with relative positions, then a length regulator.

Legend: batch, n = speech ids, time = mel frames, dim, bins = 80. Masks are True where a position is valid.
"""

import math

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from echat.config import Config


class TokenEncoderConfig(Config):
    """Sizes of the conformer over speech ids (no convolution module, no macaron half-steps)."""

    input_size: int = Field(512, description="width of the id embedding")
    output_size: int = Field(512, description="width of the blocks")
    attention_heads: int = 8
    linear_units: int = Field(2048, description="width of the feed-forward layers")
    num_blocks: int = 6

    @model_validator(mode="after")
    def _heads_divide(self) -> "TokenEncoderConfig":
        if self.output_size % self.attention_heads or self.output_size % 2:
            raise ValueError(
                f"output_size: expected an even multiple of attention_heads {self.attention_heads}, "
                f"found {self.output_size}"
            )
        return self


def relative_positions(n: int, dim: int) -> Tensor:
    """Sinusoids of the distances `n - 1 ... -(n - 1)`, `(2 n - 1, dim)`; positive to the left."""
    distance = torch.arange(n - 1, -n, -1, dtype=torch.float32)[:, None]
    rate = torch.exp(torch.arange(0, dim, 2, dtype=torch.float32) * -(math.log(10000.0) / dim))
    return torch.stack([torch.sin(distance * rate), torch.cos(distance * rate)], dim=-1).flatten(1)


class RelativeAttention(nn.Module):
    """`score(i, j) = ((q_i + u) k_j + (q_i + v) p_(i - j)) / sqrt(d)` (Transformer-XL)."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.linear_q = nn.Linear(dim, dim)
        self.linear_k = nn.Linear(dim, dim)
        self.linear_v = nn.Linear(dim, dim)
        self.linear_out = nn.Linear(dim, dim)
        self.linear_pos = nn.Linear(dim, dim, bias=False)
        self.pos_bias_u = nn.Parameter(torch.empty(heads, dim // heads))
        self.pos_bias_v = nn.Parameter(torch.empty(heads, dim // heads))
        nn.init.xavier_uniform_(self.pos_bias_u)
        nn.init.xavier_uniform_(self.pos_bias_v)

    def forward(self, x: Tensor, positions: Tensor, mask: Tensor | None) -> Tensor:
        """`x (batch, n, dim)`, `positions (2 n - 1, dim)`, `mask (batch, n)` True = keep."""
        q, k, v = (self._split(linear(x)) for linear in (self.linear_q, self.linear_k, self.linear_v))
        p = self._split(self.linear_pos(positions)[None])  # (1, heads, 2 n - 1, d)
        by_distance = (q + self.pos_bias_v[:, None]) @ p.transpose(-1, -2)
        bias = _shift(by_distance) / math.sqrt(q.shape[-1])  # (batch, heads, n, n)
        if mask is not None:
            bias = bias.masked_fill(~mask[:, None, None], -math.inf)
        out = F.scaled_dot_product_attention(q + self.pos_bias_u[:, None], k, v, attn_mask=bias.to(q.dtype))
        return self.linear_out(out.transpose(1, 2).flatten(2))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


def _shift(x: Tensor) -> Tensor:
    """Column = distance becomes column = key: `(batch, heads, n, 2 n - 1) -> (batch, heads, n, n)`."""
    batch, heads, n, wide = x.shape
    x = F.pad(x, (1, 0)).view(batch, heads, wide + 1, n)
    return x[:, :, 1:].reshape(batch, heads, n, wide)[..., :n]


class SiLUFeedForward(nn.Module):
    """Linear, SiLU, linear."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.w_1 = nn.Linear(dim, hidden)
        self.w_2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.w_2(F.silu(self.w_1(x)))


class EncoderBlock(nn.Module):
    """Attention and feed-forward, each on a normalised input and added."""

    def __init__(self, config: TokenEncoderConfig) -> None:
        super().__init__()
        dim = config.output_size
        self.self_attn = RelativeAttention(dim, config.attention_heads)
        self.feed_forward = SiLUFeedForward(dim, config.linear_units)
        self.norm_mha = nn.LayerNorm(dim, eps=1e-12)
        self.norm_ff = nn.LayerNorm(dim, eps=1e-12)

    def forward(self, x: Tensor, positions: Tensor, mask: Tensor | None) -> Tensor:
        x = x + self.self_attn(self.norm_mha(x), positions, mask)
        return x + self.feed_forward(self.norm_ff(x))


class InputLayer(nn.Module):
    """Linear, norm, times sqrt(dim); positions are not added."""

    def __init__(self, config: TokenEncoderConfig) -> None:
        super().__init__()
        self.out = nn.Sequential(
            nn.Linear(config.input_size, config.output_size), nn.LayerNorm(config.output_size)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.out(x)
        return x * math.sqrt(x.shape[-1])


class TokenEncoder(nn.Module):
    """`(batch, n, input_size) -> (batch, n, output_size)` with the whole sequence in view."""

    def __init__(self, config: TokenEncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = InputLayer(config)
        self.encoders = nn.ModuleList(EncoderBlock(config) for _ in range(config.num_blocks))
        self.after_norm = nn.LayerNorm(config.output_size)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = self.embed(x)
        positions = relative_positions(x.shape[1], self.config.output_size).to(x)
        for block in self.encoders:
            x = block(x, positions, mask)
        return self.after_norm(x)


class MaskedGroupNorm(nn.GroupNorm):
    """GroupNorm over channels and time; with a mask, padding stays out of the statistics."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """`x (batch, channels, time)`, `mask (batch, 1, time)` of ones and zeros."""
        if mask is None:
            return super().forward(x)
        groups = x.float().unflatten(1, (self.num_groups, -1))
        keep = mask.float()[:, None]
        count = keep.sum((2, 3), keepdim=True) * groups.shape[2]
        mean = (groups * keep).sum((2, 3), keepdim=True) / count
        variance = ((groups - mean) * keep).square().sum((2, 3), keepdim=True) / count
        normal = ((groups - mean) * torch.rsqrt(variance + self.eps)).flatten(1, 2).to(x.dtype)
        return normal * self.weight[:, None] + self.bias[:, None]


class LengthRegulator(nn.Module):
    """Smooths vectors that were stretched from speech ids to mel frames."""

    def __init__(self, channels: int, layers: int = 4) -> None:
        super().__init__()
        self.model = nn.Sequential()
        for _ in range(layers):
            self.model.append(nn.Conv1d(channels, channels, 3, padding=1))
            self.model.append(MaskedGroupNorm(1, channels)).append(nn.Mish())
        self.model.append(nn.Conv1d(channels, channels, 1))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """`(batch, channels, time) -> (batch, channels, time)`; `mask (batch, 1, time)` of ones and zeros."""
        for layer in self.model:
            if isinstance(layer, MaskedGroupNorm):
                x = layer(x, mask)
            else:
                x = layer(x if mask is None else x * mask)
        return x if mask is None else x * mask


def stretch(x: Tensor, frames: int) -> Tensor:
    """Linear interpolation over time with half-pixel centres, `(batch, n, dim) -> (batch, frames, dim)`."""
    if frames == 0 or x.shape[1] == 0:
        return x[:, :0]
    return F.interpolate(x.transpose(1, 2), size=frames, mode="linear").transpose(1, 2)


def stretch_at(x: Tensor, positions: Tensor) -> Tensor:
    """Linear interpolation at `positions (frames,)`, in steps of `x (batch, n, dim)`; ends are held."""
    positions = positions.clamp(0, x.shape[1] - 1)
    left = positions.floor().long().clamp(max=max(0, x.shape[1] - 2))
    share = (positions - left).to(x)[:, None]
    return torch.lerp(x[:, left], x[:, (left + 1).clamp(max=x.shape[1] - 1)], share)


def stretch_rows(x: Tensor, lens: Tensor, frame_lens: Tensor) -> Tensor:
    """`stretch` for padded rows: row `b` goes from `lens[b]` to `frame_lens[b]`, zeros behind."""
    if lens.unique().numel() == 1 and frame_lens.unique().numel() == 1:
        return stretch(x[:, : int(lens[0])], int(frame_lens[0]))
    out = x.new_zeros(x.shape[0], int(frame_lens.max()), x.shape[2])
    for row, (n, frames) in enumerate(zip(lens.tolist(), frame_lens.tolist(), strict=True)):
        out[row, :frames] = stretch(x[row : row + 1, :n], frames)[0]
    return out
