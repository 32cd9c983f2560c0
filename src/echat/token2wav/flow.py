"""Conditional flow matching: speech ids and a voice become a mel.

`x0` is noise, `x1` the mel, `t` the flow time in [0, 1]; nothing else is called `t` (Lipman et al. 2023,
equations 22 and 23).

Legend: batch, n = speech ids, time = mel frames, bins = 80.
"""

import math
from collections.abc import Callable
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from echat.audio.features import VOCODER_HOP, VOCODER_N_MELS, VOCODER_RATE, MelFormat
from echat.audio.speech_tokens import CODEC_SIZE, SPEECH_TOKEN_RATE
from echat.config import Config
from echat.token2wav.estimator import Estimator, EstimatorConfig
from echat.token2wav.token_encoder import (
    LengthRegulator,
    TokenEncoder,
    TokenEncoderConfig,
    stretch,
    stretch_rows,
)

Velocity = Callable[[Tensor, int, Tensor], Tensor]


class FlowConfig(Config):
    """Sizes and constants of the flow; the defaults are those of the released 25 Hz model."""

    renamed: ClassVar = {"seam_ids": "boundary_tokens"}
    OMITTED_AT_DEFAULT: ClassVar[frozenset[str]] = frozenset({"sampling_rate", "hop"})

    input_size: int = Field(512, description="width of the speech id embedding")
    output_size: int = Field(VOCODER_N_MELS, description="mel bins")
    sampling_rate: int = Field(VOCODER_RATE, gt=0, description="of the waveform behind the mel, Hz")
    hop: int = Field(VOCODER_HOP, gt=0, description="samples per mel frame")
    spk_embed_dim: int = Field(192, description="width of the speaker embedding")
    vocab_size: int = Field(CODEC_SIZE, description="speech ids")
    input_frame_rate: int = Field(SPEECH_TOKEN_RATE, description="speech ids per second")
    regulator_layers: int = 4
    sigma_min: float = 1e-6
    training_cfg_rate: float = Field(0.2, description="share of training rows without any condition")
    inference_cfg_rate: float = Field(0.7, description="strength of guidance")
    t_scheduler: Literal["cosine", "linear"] = "cosine"
    steps: int = Field(10, gt=0, description="Euler steps")
    temperature: float = Field(1.0, ge=0, description="scale of the random start noise; 0 = none")
    prior_weight: float = Field(
        0.0, ge=0, description="weight of the distance of mu from the mel (Popov 2021)"
    )
    one_step: bool = Field(
        False,
        description="predict the mel itself, in one step from zero, instead of a velocity: for voices that "
        "always read alike, where no randomness is wanted",
    )
    boundary_tokens: int = Field(
        20, ge=0, description="ids at head and tail that are stretched to whole frames on their own; 0 = none"
    )
    mel_mean: float = Field(0.0, description="subtracted from the mel inside the flow")
    mel_scale: float = Field(1.0, gt=0, description="the mel is divided by this inside the flow")
    encoder: TokenEncoderConfig = TokenEncoderConfig()
    estimator: EstimatorConfig = EstimatorConfig()

    @model_validator(mode="after")
    def _consistent(self) -> "FlowConfig":
        if self.encoder.input_size != self.input_size:
            raise ValueError(
                f"encoder.input_size: expected input_size {self.input_size}, found {self.encoder.input_size}"
            )
        if (
            self.estimator.in_channels != 4 * self.output_size
            or self.estimator.out_channels != self.output_size
        ):
            raise ValueError(
                f"estimator: expected {4 * self.output_size} channels in and {self.output_size} out, found "
                f"{self.estimator.in_channels} and {self.estimator.out_channels}"
            )
        if self.one_step and (self.steps, self.temperature, self.inference_cfg_rate) != (1, 0, 0):
            raise ValueError(
                "one_step: expected steps 1, temperature 0 and inference_cfg_rate 0, found "
                f"{self.steps}, {self.temperature:g} and {self.inference_cfg_rate:g}"
            )
        return self

    @property
    def mel(self) -> MelFormat:
        """The mel that it makes."""
        return MelFormat(self.sampling_rate, self.hop, self.output_size)

    @property
    def ids_per_frame(self) -> float:
        """Speech ids that pass in one mel frame."""
        return self.input_frame_rate / (self.sampling_rate / self.hop)

    def mel_frames(self, n: int) -> int:
        """Mel frames of `n` speech ids, truncated as the released code does, in floating point."""
        return int(n / self.input_frame_rate * self.sampling_rate / self.hop)


class FlowMatching(nn.Module):
    """The ODE of flow matching with its Euler solver, and its training loss."""

    def __init__(self, config: FlowConfig) -> None:
        super().__init__()
        self.config = config
        self.estimator = Estimator(config.estimator)

    def solve(self, x0: Tensor, mu: Tensor, spks: Tensor, cond: Tensor) -> Tensor:
        """ODE solver: noise to mel by Euler steps with classifier-free guidance; all rows of one length."""
        velocity, x = self.field(mu, spks, cond), x0
        for step, (t, dt) in enumerate(self.steps(x0)):
            x = x + dt * velocity(x, step, t)
        return x

    def steps(self, like: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Time and width of each Euler step; times are added up, as the released code does."""
        grid = self._warp(torch.linspace(0, 1, self.config.steps + 1, device=like.device, dtype=like.dtype))
        t, dt = grid[0], grid[1] - grid[0]
        steps = [(t, dt)]
        for stop in grid[2:]:
            t = t + dt
            dt = stop - t
            steps.append((t, dt))
        return steps

    def field(self, mu: Tensor, spks: Tensor, cond: Tensor) -> Velocity:
        """The velocity at `(x, number of the step, its time)` under a condition."""
        guidance = self.config.inference_cfg_rate
        if not guidance:  # the unconditional half would count nothing
            return lambda x, _, t: self.estimator(x, None, mu, t.expand(len(x)), spks, cond)
        both = [torch.cat([given, torch.zeros_like(given)]) for given in (mu, spks, cond)]

        def guided(x: Tensor, _: int, t: Tensor) -> Tensor:
            velocity = self.estimator(torch.cat([x, x]), None, both[0], t.expand(2 * len(x)), *both[1:])
            with_condition, free = velocity.chunk(2)
            return (1 + guidance) * with_condition - guidance * free

        return guided

    def loss(
        self,
        x1: Tensor,
        mask: Tensor,
        mu: Tensor,
        spks: Tensor,
        cond: Tensor,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Error of the velocity per row, `(batch,)`: each the mean over its valid frames and bins.

        Squared; of the only step of a `one_step` flow, whose velocity is the mel, absolute.
        """
        batch, one_step = x1.shape[0], self.config.one_step
        if one_step:
            t, x0 = x1.new_zeros(batch), torch.zeros_like(x1)
        else:
            t = self._warp(torch.rand(batch, generator=generator)).to(x1)
            x0 = torch.randn(x1.shape, generator=generator).to(x1)
        shrink = 1 - self.config.sigma_min
        xt = (1 - shrink * t[:, None, None]) * x0 + t[:, None, None] * x1
        u = x1 - shrink * x0
        keep = (torch.rand(batch, generator=generator) >= self.config.training_cfg_rate).to(x1)
        full = None if bool(mask.all()) else mask
        velocity = self.estimator(
            xt, full, mu * keep[:, None, None], t, spks * keep[:, None], cond * keep[:, None, None]
        )
        away = velocity.float() - u
        error = away.abs() if one_step else away.square()
        return (error * mask).sum((1, 2)) / (mask.sum((1, 2)) * x1.shape[1])

    def _warp(self, t: Tensor) -> Tensor:
        return 1 - torch.cos(t * 0.5 * math.pi) if self.config.t_scheduler == "cosine" else t


class Flow(nn.Module):
    """Ids -> embedding -> encoder -> length regulator -> flow matching -> mel."""

    def __init__(self, config: FlowConfig) -> None:
        super().__init__()
        self.config = config
        self.input_embedding = nn.Embedding(config.vocab_size, config.input_size)
        self.spk_embed_affine_layer = nn.Linear(config.spk_embed_dim, config.output_size)
        self.encoder = TokenEncoder(config.encoder)
        self.encoder_proj = nn.Linear(config.encoder.output_size, config.output_size)
        self.length_regulator = LengthRegulator(config.output_size, config.regulator_layers)
        self.decoder = FlowMatching(config)

    def forward(
        self,
        speech_ids: Tensor,
        prompt_ids: Tensor,
        prompt_mel: Tensor,
        embedding: Tensor,
        z: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """The mel `(1, bins, time)` of `speech_ids (1, n)`, spoken on from the prompt.

        `prompt_ids (1, n1)` and `prompt_mel (1, time1, bins)` may be empty; `embedding (1, 192)` of any
        scale. `z` is the start noise `(1, bins, time1 + time)`.
        """
        mu = self.regulate(speech_ids, prompt_ids, prompt_mel.shape[1])
        if z is None:
            z = torch.randn(mu.shape, generator=generator).to(mu) * self.config.temperature
        return self.mel_from(mu, prompt_mel, embedding, z)

    def mel_from(self, mu: Tensor, prompt_mel: Tensor, embedding: Tensor, z: Tensor) -> Tensor:
        """The mel after the prompt, from regulated ids and start noise, both of prompt + reply length."""
        prompt = (prompt_mel.transpose(1, 2) - self.config.mel_mean) / self.config.mel_scale
        cond = F.pad(prompt, (0, mu.shape[2] - prompt.shape[2]))
        x1 = self.decoder.solve(z, mu, self.speaker(embedding), cond)[:, :, prompt.shape[2] :]
        return x1 * self.config.mel_scale + self.config.mel_mean

    def speaker(self, embedding: Tensor) -> Tensor:
        """`(batch, 192) -> (batch, bins)`; only the direction of the embedding counts."""
        return self.spk_embed_affine_layer(F.normalize(embedding, dim=1))

    def encode(self, speech_ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """One vector of `bins` per speech id, `(batch, n, bins)`; `mask (batch, n)` True = valid."""
        x = self.input_embedding(speech_ids.clamp(min=0))
        if mask is not None:
            x = x * mask[..., None]
        return self.encoder_proj(self.encoder(x, mask))

    def regulate(self, speech_ids: Tensor, prompt_ids: Tensor, prompt_frames: int) -> Tensor:
        """Condition of the flow, `(1, bins, prompt_frames + time)`."""
        h = self.encode(torch.cat([prompt_ids.to(speech_ids), speech_ids], dim=1))
        prompt, reply = h[:, : prompt_ids.shape[1]], h[:, prompt_ids.shape[1] :]
        n, edge = reply.shape[1], self.config.boundary_tokens
        frames, edge_frames = self.config.mel_frames(n), self.config.mel_frames(edge)
        pieces = [stretch(prompt, prompt_frames)]
        if edge and n > 2 * edge:
            pieces.append(stretch(reply[:, :edge], edge_frames))
            pieces.append(stretch(reply[:, edge:-edge], frames - 2 * edge_frames))
            pieces.append(stretch(reply[:, -edge:], edge_frames))
        else:
            pieces.append(stretch(reply, frames))
        return self.length_regulator(torch.cat(pieces, dim=1).transpose(1, 2))

    def loss(
        self,
        speech_ids: Tensor,
        lens: Tensor,
        mel: Tensor,
        mel_lens: Tensor,
        embedding: Tensor,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Training loss per row `(batch,)` and its parts.

        `speech_ids (batch, n)`, `mel (batch, time, bins)`, both padded at the end, `embedding (batch, 192)`.
        Half of the rows get the first part of their own mel (up to 30 %) as a prompt.
        """
        frame_mask = torch.arange(mel.shape[1], device=mel.device) < mel_lens[:, None]
        mask = frame_mask[:, None].to(mel)
        id_mask = torch.arange(speech_ids.shape[1], device=mel.device) < lens[:, None]
        h = self.encode(speech_ids, None if bool(id_mask.all()) else id_mask)
        full = None if bool(frame_mask.all()) else mask
        mu = self.length_regulator(stretch_rows(h, lens, mel_lens).transpose(1, 2), full)
        x1 = (mel.transpose(1, 2) - self.config.mel_mean) / self.config.mel_scale * mask
        cond = x1 * self._prompt_mask(mel_lens, mel.shape[1], generator)
        parts = {"flow": self.decoder.loss(x1, mask, mu, self.speaker(embedding), cond, generator)}
        total = parts["flow"]
        if self.config.prior_weight:
            error = ((mu.float() - x1).abs() * mask).sum((1, 2))
            parts["prior"] = error / (mask.sum((1, 2)) * x1.shape[1])
            total = total + self.config.prior_weight * parts["prior"]
        return total, parts

    @staticmethod
    def _prompt_mask(mel_lens: Tensor, frames: int, generator: torch.Generator | None) -> Tensor:
        share, use = torch.rand(2, mel_lens.shape[0], generator=generator).to(mel_lens.device)
        length = (0.3 * share * mel_lens).long() * (use < 0.5)
        return (torch.arange(frames, device=mel_lens.device) < length[:, None])[:, None]
