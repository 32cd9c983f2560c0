"""What the model hears: a Whisper-type encoder (50 frames/s) and a causal subsampler (12.5 frames/s).

Legend: B batch, T mel frames (10 ms), E encoder frames (20 ms), D frames for the language model (80 ms), dim
width.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from echat.audio.features import N_MELS
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

MEL_FRAME_SECONDS = 0.01
ENCODER_STRIDE = 2
SUBSAMPLER_STRIDES = (1, 2, 2)
SUBSAMPLER_KERNEL = 3
ENCODER_FRAME_SECONDS = MEL_FRAME_SECONDS * ENCODER_STRIDE
LLM_FRAME_SECONDS = ENCODER_FRAME_SECONDS * 4


class EncoderConfig(Config):
    """Shape of the speech encoder; the defaults are the released size (Whisper medium)."""

    n_mels: int = Field(N_MELS, gt=0)  # mel bins of the input: training and inference compute as many
    dim: int = Field(1024, gt=0)  # model width, also of the subsampler
    blocks: int = Field(24, gt=0, le=MOST_BLOCKS)  # Transformer blocks
    heads: int = Field(16, gt=0)  # attention heads
    ffn: int = Field(4096, gt=0)  # hidden width of the feed-forward layers
    # rows of the position table, 20 ms each: longer audio is refused
    max_frames: int = Field(30000, gt=0, le=MOST_FRAMES)
    conv_kernel: int = Field(
        0, ge=0
    )  # of a convolution in each block, which a small encoder learns from sooner; 0: none
    layer_mix: bool = False  # a learned mix of all depths leaves the encoder; False: the last alone
    dropout: float = 0.1  # on positions, attention and feed-forward outputs, in training only
    position_rounding: Rounding = ()  # of the position table that the weights were trained with


def encoder_frames(mel_frames: int) -> int:
    """Encoder frames for so many mel frames: E = ceil(T / 2)."""
    return -(-mel_frames // ENCODER_STRIDE)


def llm_frames(mel_frames: int) -> int:
    """Positions in the language model for so many mel frames: D = ceil(ceil(T / 2) / 4)."""
    return -(-encoder_frames(mel_frames) // 4)


class LayerMix(nn.Module):
    """Softmax-weighted sum of the normalised frames of every depth; what is last comes with its own norm.

    The last layers of a recogniser keep the words and have lost the voice; emotion, sound events, age and
    gender are read better from those before.
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
    """Three causal convolutions, 50 -> 12.5 frames/s. Output t hears encoder frames 4t-8 .. 4t, so padding
    on the right cannot leak in."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv1d(dim, dim, SUBSAMPLER_KERNEL, stride=stride) for stride in SUBSAMPLER_STRIDES
        )

    def forward(self, frames: Tensor, lens: Tensor) -> tuple[Tensor, Tensor]:
        """(B, E, dim) -> (B, D, dim); lens (B,) -> ceil(lens / 4)."""
        channels = frames.transpose(1, 2)
        for conv in self.convs:
            channels = F.gelu(conv(F.pad(channels, (SUBSAMPLER_KERNEL - 1, 0))))
        return channels.transpose(1, 2), torch.div(lens + 3, 4, rounding_mode="floor")
