"""Transformer layers of speech encoder and adapter: positions, self-attention, feed-forward, convolution.

Legend: B batch, T time, H heads, dim model width.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from echat.devices import DTYPES
from echat.kernels.attention import eager_attention, prefers_eager

LAYER_NORM_EPS = 1e-5
LONGEST_PERIOD = 10000.0
MOST_BLOCKS = 1000  # a configuration that asks for more is a mistake or an attack
MOST_FRAMES = 200_000  # of a position table: an hour of sound, 0.8 GB at the released width

PositionLayout = Literal["halves", "interleaved"]
Activation = Literal["gelu", "relu"]
Rounding = tuple[Literal["fp16", "bf16"], ...]  # precisions that values passed through, in this order


def sinusoids(length: int, dim: int, layout: PositionLayout) -> Tensor:
    """Table (length, dim) of sinusoidal positions.

    `halves` is Whisper's form: all sines, then all cosines, the slowest wave reaching exactly the longest
    period. `interleaved` is the form of the original Transformer: sine and cosine alternate.
    """
    if dim % 2:
        raise ValueError(
            f"sinusoidal positions: expected an even width, found {dim}; choose an even model width"
        )
    half = dim // 2
    waves = torch.arange(half, dtype=torch.float32)
    if layout == "halves":
        rates = torch.exp(-math.log(LONGEST_PERIOD) / max(half - 1, 1) * waves)
    else:
        rates = torch.exp(2 * waves * -(math.log(LONGEST_PERIOD) / dim))
    angles = torch.arange(length, dtype=torch.float32)[:, None] * rates[None, :]
    if layout == "halves":
        return torch.cat([angles.sin(), angles.cos()], dim=1)
    return torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1)


def keep_mask(lens: Tensor, size: int) -> Tensor | None:
    """True on the first `lens[b]` of `size` positions, (B, size); None when no row has padding."""
    if bool((lens >= size).all()):
        return None
    return torch.arange(size, device=lens.device)[None, :] < lens[:, None]


def rounded(table: Tensor, rounding: Rounding) -> Tensor:
    """Float32 values as they came through lower precisions."""
    for name in rounding:
        table = table.to(DTYPES[name]).float()
    return table


class PositionTable(nn.Module):
    """Sinusoidal position embeddings, added; the table is computed at construction and never stored."""

    table: Tensor

    def __init__(
        self,
        max_frames: int,
        dim: int,
        layout: PositionLayout,
        frame_seconds: float,
        rounding: Rounding = (),
    ) -> None:
        super().__init__()
        self.max_frames, self.dim, self.layout = max_frames, dim, layout
        self.frame_seconds, self.rounding = frame_seconds, rounding
        self.register_buffer("table", self.computed(), persistent=False)

    def computed(self) -> Tensor:
        """The table (max_frames, dim) in float32."""
        return rounded(sinusoids(self.max_frames, self.dim, self.layout), self.rounding)

    def reset(self) -> None:
        """Compute the table again (after the module was built without memory on the meta device)."""
        self.table = self.computed()

    def forward(self, frames: Tensor) -> Tensor:
        """(B, T, dim) -> (B, T, dim)."""
        length = frames.shape[1]
        if length > self.max_frames:
            raise ValueError(
                f"audio: expected at most {self.max_frames * self.frame_seconds:.0f} s, found about "
                f"{length * self.frame_seconds:.0f} s; cut the recording into shorter pieces"
            )
        return frames + self.table[:length]


class SelfAttention(nn.Module):
    """Bidirectional multi-head attention; padded keys are masked, outputs of padded queries are unused."""

    def __init__(self, dim: int, heads: int, key_bias: bool) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"attention: expected a width divisible by the heads, found {dim} and {heads}")
        self.heads = heads
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(dim, dim, bias=key_bias)
        self.value = nn.Linear(dim, dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, frames: Tensor, mask: Tensor | None) -> Tensor:
        """frames (B, T, dim), mask (B, 1, 1, T) or None -> (B, T, dim)."""
        query, key, value = self.query(frames), self.key(frames), self.value(frames)
        return self.out(attend(query, key, value, self.heads, mask))


def attend(query: Tensor, key: Tensor, value: Tensor, heads: int, mask: Tensor | None) -> Tensor:
    """Attention of several heads over (B, T, dim) each, mask (B, 1, 1, T) True = keep -> (B, T, dim)."""
    batch, length, dim = query.shape
    shape = (batch, length, heads, dim // heads)
    query, key, value = (x.view(shape).transpose(1, 2) for x in (query, key, value))  # (B, H, T, dim / H)
    if prefers_eager(value):
        keep = None if mask is None else mask[:, :, None]
        mixed = eager_attention(query, key, value, keep, (dim // heads) ** -0.5)
    else:
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    return mixed.transpose(1, 2).reshape(batch, length, dim)


class FeedForward(nn.Module):
    """Two linear layers around an activation (exact GELU or ReLU)."""

    def __init__(self, dim: int, hidden: int, activation: Activation, dropout: float) -> None:
        super().__init__()
        self.expand = nn.Linear(dim, hidden)
        self.contract = nn.Linear(hidden, dim)
        self.activation = F.gelu if activation == "gelu" else F.relu
        self.dropout = nn.Dropout(dropout)

    def forward(self, frames: Tensor) -> Tensor:
        return self.contract(self.dropout(self.activation(self.expand(frames))))


class ConvolutionModule(nn.Module):
    """What the neighbouring frames say: a gated pointwise map, a filter per channel over time, a map back.

    Conformer (Gulati et al. 2020), section 2.2, with layer norm instead of batch norm.
    """

    def __init__(self, dim: int, kernel: int) -> None:
        super().__init__()
        if kernel % 2 == 0:
            raise ValueError(f"convolution: expected an odd kernel, found {kernel}; it looks both ways alike")
        self.gate = nn.Linear(dim, 2 * dim)
        self.over_time = nn.Conv1d(dim, dim, kernel, padding=kernel // 2, groups=dim)
        self.norm = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.out = nn.Linear(dim, dim)

    def forward(self, frames: Tensor, mask: Tensor | None) -> Tensor:
        """frames (B, T, dim), mask (B, 1, 1, T) or None -> (B, T, dim); padding is silent."""
        gated = F.glu(self.gate(frames), dim=-1)
        if mask is not None:
            gated = gated * mask[:, 0, 0, :, None]
        return self.out(F.silu(self.norm(self._convolve(gated))))

    def _convolve(self, gated: Tensor) -> Tensor:
        """`over_time` of (B, T, dim), taken for an image of one line: only for images has torch kernels for
        CPUs that leave channels side by side. Forwards they take a tenth of the time, backwards a half."""
        filters, image = self.over_time, gated.transpose(1, 2)[:, :, None]  # (B, dim, 1, T)
        weight, padding = filters.weight[:, :, None], (0, filters.kernel_size[0] // 2)
        convolved = F.conv2d(image, weight, filters.bias, padding=padding, groups=filters.groups)
        return convolved[:, :, 0].transpose(1, 2)


class TransformerBlock(nn.Module):
    """Pre-norm block: attention, with `conv_kernel` a convolution, feed-forward; all residual."""

    def __init__(
        self,
        dim: int,
        heads: int,
        hidden: int,
        activation: Activation,
        key_bias: bool,
        dropout: float,
        conv_kernel: int = 0,
    ) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.attention = SelfAttention(dim, heads, key_bias)
        if conv_kernel:
            self.convolution_norm = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
            self.convolution = ConvolutionModule(dim, conv_kernel)
        self.has_convolution = conv_kernel > 0
        self.feed_forward_norm = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.feed_forward = FeedForward(dim, hidden, activation, dropout)
        self.dropout = nn.Dropout(dropout)

    def forward(self, frames: Tensor, mask: Tensor | None) -> Tensor:
        frames = frames + self.dropout(self.attention(self.attention_norm(frames), mask))
        if self.has_convolution:
            frames = frames + self.dropout(self.convolution(self.convolution_norm(frames), mask))
        return frames + self.dropout(self.feed_forward(self.feed_forward_norm(frames)))
