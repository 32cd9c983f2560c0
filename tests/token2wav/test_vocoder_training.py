"""Losses of the vocoder: zero where they should be, falling where they must; critics teach one side each."""

import math

import pytest
import torch

from echat.audio.features import mel_filterbank, vocoder_mel
from echat.token2wav.hift.losses import (
    Cut,
    Discriminators,
    VocoderLossConfig,
    cut,
    mel_loss,
    pitch_track,
    spectral_loss,
    vocoder_loss,
)
from echat.token2wav.hift.snake import Snake
from echat.token2wav.hift.vocoder import F0PredictorConfig, Vocoder, VocoderConfig

SMALL = VocoderConfig(
    base_channels=16,
    random_phase=False,
    resblock_kernel_sizes=(3,),
    resblock_dilation_sizes=((1,),),
    source_resblock_kernel_sizes=(3, 3),
    source_resblock_dilation_sizes=((1,), (1,)),
    f0_predictor=F0PredictorConfig(cond_channels=8),
)
BASIS = mel_filterbank(80, 1024, 22050)


def tone(hz: float, samples: int) -> torch.Tensor:
    time = torch.arange(samples) / 22050
    return sum(0.2 / k * torch.sin(2 * math.pi * hz * k * time) for k in (1, 2, 3, 4))


def test_equal_waveforms_cost_nothing_and_others_do():
    a, b = tone(200, 8192)[None], tone(260, 8192)[None]
    assert spectral_loss(a, a, (512, 256)) == 0 and mel_loss(a, a, BASIS) == 0
    assert spectral_loss(a, b, (512, 256)) > 0.1 and mel_loss(a, b, BASIS) > 0.1


def test_pitch_of_a_tone():
    pytest.importorskip("pyworld")
    f0 = pitch_track(tone(200, 22050), 22050, 256)
    assert f0.shape == (22050 // 256,)
    assert (f0[10:-10] - 200).abs().max() < 4


def test_cuts_keep_mel_and_waveform_together():
    clip = Cut(
        torch.arange(20.0).repeat(80, 1), torch.arange(20.0).repeat_interleave(256), torch.arange(20.0)
    )
    piece = cut(clip, 7, 256, torch.Generator().manual_seed(3))
    assert torch.equal(piece.mel[0], piece.f0)
    assert torch.equal(piece.waveform[::256], piece.f0)
    long = cut(clip, 25, 256, torch.Generator())
    assert long.mel.shape == (80, 25) and (long.mel[:, 20:] == 19).all()
    assert (long.waveform[20 * 256 :] == 0).all() and (long.f0[20:] == 0).all()


def test_it_learns():
    torch.manual_seed(0)
    vocoder = Vocoder(SMALL)
    waveform = tone(200, 12 * 256)
    clip = Cut(vocoder_mel(waveform).T[None], waveform[None], torch.full((1, 12), 200.0))
    optimizer = torch.optim.Adam(vocoder.parameters(), 5e-3)
    totals = []
    for _ in range(40):
        total, _parts, made = vocoder_loss(
            vocoder, clip, VocoderLossConfig(fft_sizes=(512, 128)), BASIS, True
        )
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        totals.append(total.item())
    assert made.shape == waveform[None].shape
    assert totals[-1] < 0.6 * totals[0]
    assert vocoder(clip.mel)[0].shape == (1, 12 * 256)


def test_critics_teach_one_side_each():
    torch.manual_seed(0)
    discriminators, real = Discriminators(width=4), tone(200, 4096)[None]
    made = torch.randn(1, 4096, requires_grad=True)
    adversarial, distance = discriminators.generator_loss(made, real)
    (adversarial + distance).backward()
    assert made.grad is not None and made.grad.abs().sum() > 0
    assert all(p.grad is None for p in discriminators.parameters())
    made.grad = None
    discriminators.discriminator_loss(made, real).backward()
    assert made.grad is None
    assert all(p.grad is not None for p in discriminators.parameters())


@pytest.mark.parametrize("change", [{"base_channels": 10}, {"source_resblock_kernel_sizes": (7,)}])
def test_impossible_sizes(change):
    with pytest.raises(ValueError, match="expected"):
        VocoderConfig(**change)


def test_snake_has_the_derivative_autograd_would_find():
    torch.manual_seed(0)
    snake, x = Snake(3), torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True)
    alpha = (torch.rand(3, dtype=torch.float64) + 0.3).requires_grad_()
    snake.alpha = torch.nn.Parameter(alpha.detach().clone())
    weights = torch.randn(2, 3, 5, dtype=torch.float64)
    ((x + torch.sin(alpha[:, None] * x).square() / (alpha[:, None] + 1e-9)) * weights).sum().backward()
    expected, x.grad = x.grad, None
    (snake(x) * weights).sum().backward()
    assert torch.allclose(x.grad, expected)
    assert torch.allclose(snake.alpha.grad, alpha.grad)
