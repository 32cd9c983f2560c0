"""The vocoder of :mod:`echat.token2wav.hift.vocoder` for inference: the same numbers, channels innermost.

Legend: tensors inside are `(batch, channels, 1, time)` in the channels-last format.
"""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from echat.kernels.channels_last import (
    ConvFunction,
    channels_last_conv,
    channels_last_conv_transpose,
    to_channels_last,
)
from echat.token2wav.hift.snake import Snake, SnakeResBlock
from echat.token2wav.hift.vocoder import F0Predictor, Vocoder


class FastVocoder(Vocoder):
    """A vocoder whose convolutions read their input as it lies; source and Fourier transforms are shared."""

    def __init__(self, plain: Vocoder) -> None:
        nn.Module.__init__(self)
        self.config = plain.config
        self.m_source = plain.m_source
        self.f0_predictor = FastF0Predictor(plain.f0_predictor)
        self.register_buffer("window", plain.window, persistent=False)
        self._pre, self._post = channels_last_conv(plain.conv_pre), channels_last_conv(plain.conv_post)
        self._ups = [channels_last_conv_transpose(cast(nn.ConvTranspose1d, up)) for up in plain.ups]
        self._source_downs = [channels_last_conv(cast(nn.Conv1d, down)) for down in plain.source_downs]
        self._source_blocks = [fast_block(cast(SnakeResBlock, block)) for block in plain.source_resblocks]
        self._blocks = [fast_block(cast(SnakeResBlock, block)) for block in plain.resblocks]

    def spectrum(self, mel: Tensor, source: Tensor) -> Tensor:
        source_bins = to_channels_last(self.source_spectrum(source))
        blocks = len(self.config.resblock_kernel_sizes)
        x = self._pre(to_channels_last(mel))
        for stage, up in enumerate(self._ups):
            x = up(F.leaky_relu(x, self.config.lrelu_slope))
            if stage == len(self._ups) - 1:
                x = torch.cat([x[..., 1:2], x], dim=3)  # one frame is reflected at the left
            x = x + self._source_blocks[stage](self._source_downs[stage](source_bins))
            first, *others = self._blocks[stage * blocks : (stage + 1) * blocks]
            total = first(x)
            for block in others:
                total = total.add_(block(x))
            x = total.div_(blocks)
        return self._post(F.leaky_relu(x)).squeeze(2)


class FastF0Predictor(F0Predictor):
    """The pitch predictor."""

    def __init__(self, plain: F0Predictor) -> None:
        nn.Module.__init__(self)
        self.classifier = plain.classifier
        self._convs = [channels_last_conv(layer) for layer in plain.condnet if isinstance(layer, nn.Conv1d)]

    def forward(self, mel: Tensor) -> Tensor:
        x = to_channels_last(mel)
        for conv in self._convs:
            x = F.elu(conv(x))
        return self.classifier(x.squeeze(2).transpose(1, 2)).squeeze(-1).abs()


def fast_block(block: SnakeResBlock) -> ConvFunction:
    """A residual block."""
    steps = [
        [fast_snake(cast(Snake, snake1)), channels_last_conv(cast(nn.Conv1d, conv1)),
         fast_snake(cast(Snake, snake2)), channels_last_conv(cast(nn.Conv1d, conv2))]
        for snake1, conv1, snake2, conv2 in zip(
            block.activations1, block.convs1, block.activations2, block.convs2, strict=True
        )
    ]  # fmt: skip

    def run(x: Tensor) -> Tensor:
        for step in steps:
            y = x
            for layer in step:
                y = layer(y)
            x = y.add_(x)
        return x

    return run


def fast_snake(snake: Snake) -> ConvFunction:
    """The activation without temporaries where possible."""
    alpha = snake.alpha.detach()[:, None, None]
    share = 1 / (alpha + 1e-9)
    return lambda x: torch.addcmul(x, torch.mul(x, alpha).sin_().square_(), share)
