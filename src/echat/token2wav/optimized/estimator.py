"""The estimator of :mod:`echat.token2wav.estimator` for inference: the same numbers in less time.

Channels stay innermost from the first layer to the last, so that nothing is transposed on the way and every
layer reads its input as it lies. What does not depend on `x` is computed once: times
become one row per residual block and step, and the part of the first layer that reads `mu`, speaker and
prompt is added up before the first step. It knows no mask: all frames are valid.

Legend: batch, time = mel frames, width = channels; everything is `(batch, time, width)`.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from echat.kernels.attention import LONG_MAX_KEYS, eager_attention, prefers_eager
from echat.kernels.channels_last import ConvFunction, channels_last_conv, channels_last_conv_transpose
from echat.kernels.packed_linear import Precision, pack_linear, pack_merged
from echat.token2wav.estimator import (
    ConvNormBlock,
    Estimator,
    Projection,
    UNetResBlock,
    UNetStage,
    UNetTransformer,
)
from echat.token2wav.token_encoder import MaskedGroupNorm

StepVelocity = Callable[[Tensor, int], Tensor]


def mish(x: Tensor) -> Tensor:
    """`x tanh(ln(1 + e^x))` from one exponential: a third of the time of the built-in one on a CPU."""
    e = x.clamp(max=20).exp_()  # beyond, tanh is 1
    e = torch.addcmul(2 * e, e, e)
    return e.div_(e + 2).mul_(x)


def fast_conv(conv: nn.Module, channels: slice = slice(None), bias: bool = True) -> ConvFunction:
    """A convolution of frames, `(batch, time, n_in) -> (batch, time, n_out)`; of the input, only `channels`
    are read."""
    if isinstance(conv, nn.ConvTranspose1d):
        layer = channels_last_conv_transpose(conv)
    else:
        layer = channels_last_conv(cast(nn.Conv1d, conv), channels, bias)
    return lambda x: layer(x.transpose(1, 2).unsqueeze(2)).squeeze(2).transpose(1, 2)


def norm_mish(x: Tensor, norm: MaskedGroupNorm) -> Tensor:
    """Group norm, then Mish."""
    image = x.transpose(1, 2).unsqueeze(2)  # channels last, which the norm has a kernel for
    y = F.group_norm(image, norm.num_groups, norm.weight, norm.bias, norm.eps)
    return mish(y.squeeze(2).transpose(1, 2))


def fast_block(block: ConvNormBlock) -> ConvFunction:
    """Convolution, norm, Mish."""
    conv, norm = fast_conv(block.block[0]), cast(MaskedGroupNorm, block.block[1])
    return lambda x: norm_mish(conv(x), norm)


class FastResBlock:
    """A residual block whose time embedding is given as a row."""

    def __init__(self, block: UNetResBlock, channels: slice = slice(None), bias: bool = True) -> None:
        conv, norm = block.block1.block
        self.conv1 = fast_conv(conv, channels, bias)
        self.norm1 = cast(MaskedGroupNorm, norm)
        self.block2 = fast_block(block.block2)
        shortcut = block.res_conv
        self.shortcut = pack_linear(
            shortcut.weight[:, channels, 0], shortcut.bias if bias else None, many_rows=True
        )

    def __call__(self, x: Tensor, time: Tensor) -> Tensor:
        return self.finish(self.conv1(x), self.shortcut(x), time)

    def finish(self, first: Tensor, shortcut: Tensor, time: Tensor) -> Tensor:
        """From the first convolution on."""
        return self.block2(norm_mish(first, self.norm1) + time) + shortcut


class FastTransformer:
    """Queries, keys and values in one product; additions inside the products that precede them."""

    def __init__(self, transformer: UNetTransformer, precision: Precision) -> None:
        attention = transformer.attn1
        out = cast(nn.Linear, attention.to_out[0])
        wide, narrow = cast(Projection, transformer.ff.net[0]).proj, cast(nn.Linear, transformer.ff.net[2])
        pack = partial(pack_merged, precision=precision, many_rows=True)
        self.heads = attention.heads
        self.norm1, self.norm3 = transformer.norm1, transformer.norm3
        self.qkv = pack([attention.to_q, attention.to_k, attention.to_v])
        self.out = pack([out])
        self.wide = pack([wide])
        self.narrow = pack([narrow])

    def __call__(self, x: Tensor) -> Tensor:
        qkv = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (batch, heads, time, dim)
        if prefers_eager(v, LONG_MAX_KEYS):
            mixed = eager_attention(q, k, v, None, q.shape[3] ** -0.5)
        else:
            mixed = F.scaled_dot_product_attention(q, k, v)
        x = self.out.add(mixed.transpose(1, 2).flatten(2), x)
        return self.narrow.add(self.wide(self.norm3(x), "gelu"), x)


class FastStage:
    """A residual block and its transformers, then the way to the next level, where there is one."""

    def __init__(self, stage: UNetStage, block: FastResBlock, precision: Precision) -> None:
        self.block = block
        self.transformers = [
            FastTransformer(cast(UNetTransformer, transformer), precision)
            for transformer in cast(nn.ModuleList, stage[1])
        ]
        self.lead = fast_conv(getattr(stage[2], "conv", stage[2])) if len(stage) > 2 else None

    def transform(self, x: Tensor) -> Tensor:
        for transformer in self.transformers:
            x = transformer(x)
        return x


class FastEstimator:
    """Velocities of one estimator at the times of one solver."""

    @torch.no_grad()
    def __init__(self, estimator: Estimator, times: Sequence[Tensor], precision: Precision) -> None:
        """`times` are those of the Euler steps; attention and feed-forward compute in `precision`."""
        down, middle, up = (
            [cast(UNetStage, stage) for stage in stages]
            for stages in (estimator.down_blocks, estimator.mid_blocks, estimator.up_blocks)
        )
        bins = estimator.config.out_channels
        first = cast(UNetResBlock, down[0][0])
        self.given = FastResBlock(first, slice(bins, None))  # reads mu, speaker, prompt
        self.moving = FastResBlock(first, slice(0, bins), bias=False)  # reads x
        self.down, self.middle, self.up = (
            [FastStage(stage, FastResBlock(cast(UNetResBlock, stage[0])), precision) for stage in stages]
            for stages in (down, middle, up)
        )
        self.last = fast_block(estimator.final_block)
        out = estimator.final_proj
        self.out = pack_linear(out.weight[..., 0], out.bias, many_rows=True)
        embedded = estimator.time_mlp(torch.stack(list(times)))  # (steps, 4 width)
        blocks = [cast(UNetResBlock, stage[0]) for stage in chain(down, middle, up)]
        self.times = [[block.mlp(row[None])[:, None] for block in blocks] for row in embedded]

    def field(self, mu: Tensor, spks: Tensor, cond: Tensor) -> StepVelocity:
        """`(x (1 or batch, bins, time), step) -> (batch, bins, time)` under a condition of `batch` rows."""
        given = torch.cat([mu, spks[..., None].expand_as(mu), cond], dim=1).transpose(1, 2)
        first, shortcut = self.given.conv1(given), self.given.shortcut(given)

        def velocity(x: Tensor, step: int) -> Tensor:
            x = x.transpose(1, 2)
            times = iter(self.times[step])
            x = self.moving.finish(
                first + self.moving.conv1(x), shortcut + self.moving.shortcut(x), next(times)
            )
            return self._run(x, times).transpose(1, 2)

        return velocity

    def _run(self, x: Tensor, times: Iterator[Tensor]) -> Tensor:
        skips = []
        for level, stage in enumerate(self.down):
            x = stage.transform(stage.block(x, next(times)) if level else x)
            skips.append(x)
            assert stage.lead is not None
            x = stage.lead(x)
        for stage in self.middle:
            x = stage.transform(stage.block(x, next(times)))
        for stage in self.up:
            skip = skips.pop()
            x = torch.cat([x[:, : skip.shape[1]], skip], dim=2)
            assert stage.lead is not None
            x = stage.lead(stage.transform(stage.block(x, next(times))))
        return self.out(self.last(x))
