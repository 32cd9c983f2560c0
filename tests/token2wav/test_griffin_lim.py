"""Refinement draws a waveform to its mel and leaves alone what it should."""

from __future__ import annotations

import torch

from echat.audio.features import VOCODER_RATE, MelFormat, vocoder_mel
from echat.token2wav.hift.griffin_lim import FRAMES_PER_ITERATION, griffin_lim
from echat.token2wav.hift.vocoder import VocoderConfig

HOP = 256


def speech_like(frames: int) -> torch.Tensor:
    """(samples,) harmonics of a gliding pitch, swelling and fading, over a little noise."""
    time = torch.arange(frames * HOP) / VOCODER_RATE
    pitch = 120 + 40 * torch.sin(4 * time)
    phase = 2 * torch.pi * (pitch / VOCODER_RATE).cumsum(0)
    tones = sum(torch.sin(k * phase) / k for k in range(1, 12))
    noise = torch.randn(len(time), generator=torch.Generator().manual_seed(0))
    return (0.1 * tones * (0.6 + 0.4 * torch.sin(9 * time)) + 0.002 * noise).float()


def blurred(waveform: torch.Tensor) -> torch.Tensor:
    """The same with a wrong, moving spectral envelope."""
    spectrum = torch.stft(waveform, 512, 128, window=torch.hann_window(512), return_complex=True)
    bands, frames = torch.meshgrid(*(torch.arange(n) for n in spectrum.shape), indexing="ij")
    gains = torch.exp(0.8 * torch.sin(bands / 9 + frames / 25))
    return torch.istft(spectrum * gains, 512, 128, window=torch.hann_window(512), length=len(waveform))


def distance(waveform: torch.Tensor, mel: torch.Tensor) -> float:
    return float((vocoder_mel(waveform).T - mel).abs().mean())


def test_each_round_brings_the_mel_nearer() -> None:
    original = speech_like(80)
    mel = vocoder_mel(original).T
    start = blurred(original)
    distances = [distance(griffin_lim(start[None], mel[None], iterations)[0], mel) for iterations in range(4)]
    assert distances[1] < 0.5 * distances[0] and distances[2] < 0.3 * distances[0]
    assert distances[3] <= distances[2]


def test_what_already_has_its_mel_hardly_changes() -> None:
    original = speech_like(60)
    again = griffin_lim(original[None], vocoder_mel(original).T[None], 2)[0]
    assert (again - original).abs().max() < 0.02 * original.abs().max()


def test_rows_do_not_touch_one_another_and_frames_only_their_surroundings() -> None:
    one, two = speech_like(60), blurred(speech_like(60))
    mels = torch.stack([vocoder_mel(two).T, vocoder_mel(one).T])
    both = griffin_lim(torch.stack([one, two]), mels, 2)
    assert torch.allclose(both[0], griffin_lim(one[None], mels[:1], 2)[0], atol=1e-5)
    changed = mels.clone()
    changed[0, :, 40:] += 1.0
    same = (40 - 2 * FRAMES_PER_ITERATION) * HOP
    assert torch.equal(
        griffin_lim(one[None], changed[:1], 2)[0, :same], griffin_lim(one[None], mels[:1], 2)[0, :same]
    )


def test_silence_and_snippets_pass() -> None:
    assert torch.equal(griffin_lim(torch.zeros(1, HOP), torch.zeros(1, 80, 1), 2), torch.zeros(1, HOP))
    silence = griffin_lim(torch.zeros(1, 20 * HOP), torch.full((1, 80, 20), -11.5), 2)
    assert silence.isfinite().all() and silence.abs().max() < 1e-3


def test_mels_of_another_format_are_refined_too() -> None:
    form = MelFormat(24_000, 240)
    original = speech_like(80)[: 80 * 240]
    mel, start = vocoder_mel(original, form).T, blurred(original)
    found = griffin_lim(start[None], mel[None], 2, form)[0]
    distances = [float((vocoder_mel(sound, form).T - mel).abs().mean()) for sound in (start, found)]
    assert distances[1] < 0.3 * distances[0]
    assert VocoderConfig(griffin_lim_iters=2).reach == VocoderConfig().reach + 2 * FRAMES_PER_ITERATION
