"""The speech encoder: a Whisper-type Transformer (50 frames/s) and a causal convolutional subsampler (12.5).

Legend: B batch, T mel frames (10 ms), E encoder frames (20 ms), D frames for the language model (80 ms in the
released size, `EncoderConfig.llm_frame_seconds` in general), dim width.
"""

import math
from collections.abc import Sequence
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from echat.audio.features import HOP, MEL_RATE, N_MELS
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

ENCODER_STRIDE = 2  # of Whisper's second convolution
ENCODER_FRAME_SECONDS = ENCODER_STRIDE / MEL_RATE
SUBSAMPLER_KERNEL = 3


class EncoderConfig(Config):
    """Shape of the speech encoder; the defaults are the released size (Whisper medium).

    Its mel bins and its frame rate are those of everything that prepares sound for the model.
    """

    OMITTED_AT_DEFAULT: ClassVar[frozenset[str]] = frozenset({"subsampler_strides"})

    n_mels: int = Field(N_MELS, gt=0)  # mel bins of the input: training and inference compute as many
    dim: int = Field(1024, gt=0)  # model width, also of the subsampler
    blocks: int = Field(24, gt=0, le=MOST_BLOCKS)  # Transformer blocks
    heads: int = Field(16, gt=0)  # attention heads
    ffn: int = Field(4096, gt=0)  # hidden width of the feed-forward layers
    # rows of the position table, 20 ms each: longer audio is refused
    max_frames: int = Field(30000, gt=0, le=MOST_FRAMES)
    conv_kernel: int = Field(
        0, ge=0
    )  # of a convolution in each block (small encoders converge sooner with it); 0: none
    layer_mix: bool = False  # output is a weighted sum of all layers; False: the last alone
    dropout: float = 0.1  # on positions, attention and feed-forward outputs, in training only
    position_rounding: Rounding = ()  # of the position table that the weights were trained with
    # strides of the causal convolutions behind the encoder
    subsampler_strides: tuple[Annotated[int, Field(gt=0)], ...] = Field((1, 2, 2), min_length=1)

    @property
    def subsampling(self) -> int:
        """Encoder frames per frame of the language model."""
        return math.prod(self.subsampler_strides)

    def llm_frames(self, mel_frames: int) -> int:
        """Positions in the language model for so many mel frames: D = ceil(ceil(T / 2) / 4), released."""
        return -(-mel_frames // (ENCODER_STRIDE * self.subsampling))

    @property
    def llm_frame_seconds(self) -> float:
        """Duration of one position of the language model."""
        return ENCODER_FRAME_SECONDS * self.subsampling

    @property
    def samples_per_llm_frame(self) -> int:
        """16 kHz samples of one position of the language model."""
        return HOP * ENCODER_STRIDE * self.subsampling


class LayerMix(nn.Module):
    """Weighted layer sum (softmax weights) of the normalised frames of every depth, as in SUPERB.

    The last layers of a recogniser keep the words; emotion, sound events, age and gender are recognised
    better from those before.
    """

    def __init__(self, dim: int, depths: int) -> None:
        super().__init__()
        self.scores = nn.Parameter(torch.zeros(depths))  # of the embedded sound, then of each block
        self.norms = nn.ModuleList(nn.LayerNorm(dim, eps=LAYER_NORM_EPS) for _ in range(depths - 1))

    def forward(self, earlier: Sequence[Tensor], last: Tensor) -> Tensor:
        """`earlier` before their norms, `last` behind its own, (B, E, dim) each -> (B, E, dim)."""
        weights = self.scores.softmax(0).unbind()
        mixed = last * weights[-1]
        for weight, norm, frames in zip(weights, self.norms, earlier):
            mixed = mixed + norm(frames) * weight
        return mixed


class SpeechEncoder(nn.Module):
    """Two convolutions, sinusoidal positions, pre-norm Transformer blocks, a final norm or a layer mix."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(config.n_mels, config.dim, kernel_size=3, padding=1)
        self.conv2 = nn.Conv1d(config.dim, config.dim, kernel_size=3, stride=ENCODER_STRIDE, padding=1)
        self.positions = PositionTable(
            config.max_frames, config.dim, "halves", ENCODER_FRAME_SECONDS, config.position_rounding
        )
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(
            TransformerBlock(
                config.dim, config.heads, config.ffn, "gelu", False, config.dropout, config.conv_kernel
            )
            for _ in range(config.blocks)
        )
        self.final_norm = nn.LayerNorm(config.dim, eps=LAYER_NORM_EPS)
        self.layer_mix = LayerMix(config.dim, config.blocks + 1) if config.layer_mix else None

    def forward(self, mel: Tensor, lens: Tensor, released_padding: bool = False) -> tuple[Tensor, Tensor]:
        """mel (B, T, n_mels), lens (B,) valid mel frames -> frames (B, E, dim), frame lens (B,).

        A padded row gives the same valid frames as the row alone, whatever its padding holds.
        `released_padding` keeps the leak of the released training code instead: the step after the last mel
        frame is not silenced between the convolutions, and an odd-length row inside an even-length batch
        loses its last frame.
        """
        frames, lens = self.embed(mel, lens, released_padding)
        keep = keep_mask(lens, frames.shape[1])
        mask = None if keep is None else keep[:, None, None, :]
        earlier: list[Tensor] = []
        for block in self.blocks:
            earlier += [frames] if self.layer_mix is not None else []
            frames = block(frames, mask)
        last = self.final_norm(frames)
        return (last if self.layer_mix is None else self.layer_mix(earlier, last)), lens

    def embed(self, mel: Tensor, lens: Tensor, released_padding: bool = False) -> tuple[Tensor, Tensor]:
        """The two convolutions and the positions: (B, T, n_mels) -> (B, E, dim)."""
        mel_frames = mel.shape[1]
        keep = None if released_padding else keep_mask(lens, mel_frames)
        mel = mel.to(self.conv1.weight.dtype)
        channels = mel.transpose(1, 2) if keep is None else (mel * keep[:, :, None]).transpose(1, 2)
        channels = F.gelu(self.conv1(channels))  # (B, dim, T)
        if released_padding:
            lens = (lens + mel_frames % 2) // ENCODER_STRIDE
        else:
            channels = channels if keep is None else channels * keep[:, None, :]
            lens = (lens + 1) // ENCODER_STRIDE
        channels = F.gelu(self.conv2(channels))  # (B, dim, E)
        return self.dropout(self.positions(channels.transpose(1, 2))), lens


class Subsampler(nn.Module):
    """Causal strided convolutions, 50 -> 12.5 frames/s in the released size. Output t depends on encoder
    frames 4t-8 .. 4t there, so padding on the right cannot leak in."""

    def __init__(self, dim: int, strides: Sequence[int]) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv1d(dim, dim, SUBSAMPLER_KERNEL, stride) for stride in strides)
        self.stride = math.prod(strides)

    def forward(self, frames: Tensor, lens: Tensor) -> tuple[Tensor, Tensor]:
        """(B, E, dim) -> (B, D, dim); lens (B,) -> ceil(lens / stride)."""
        channels = frames.transpose(1, 2)
        for conv in self.convs:
            channels = F.gelu(conv(F.pad(channels, (SUBSAMPLER_KERNEL - 1, 0))))
        lens = torch.div(lens + self.stride - 1, self.stride, rounding_mode="floor")
        return channels.transpose(1, 2), lens
