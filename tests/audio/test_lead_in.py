"""A sound that begins at once gets a moment of its own quiet, any other is left alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from echat.audio.features import HOP
from echat.audio.lead_in import LEAD, LEAD_FRAMES, SHARE_OF_LOUDEST, with_lead_in

RATE = 16_000


def spoken(quiet_before: float, noise: float = 1e-3, seconds: float = 1.0, seed: int = 0) -> torch.Tensor:
    """Two bursts like syllables with noise between and around, the first after `quiet_before` seconds."""
    rng = np.random.default_rng(seed)
    burst = np.sin(2 * np.pi * 200 * np.arange(int(0.3 * RATE)) / RATE) * rng.uniform(0.2, 0.8)
    gap = np.zeros(int(0.2 * RATE))
    sound = np.concatenate([np.zeros(int(quiet_before * RATE)), burst, gap, burst, gap])
    return torch.from_numpy(sound + noise * rng.normal(size=len(sound))).float()


@settings(deadline=None, max_examples=30)
@given(st.floats(0, 0.15), st.sampled_from([1e-4, 1e-3, 1e-2]), st.integers(0, 5))
def test_whatever_begins_sooner_begins_after_the_same_quiet(before, noise, seed):
    clip = spoken(before, noise, seed=seed)
    led = with_lead_in(clip)
    added = len(led) - len(clip)
    assert led[added:].equal(clip)
    begin = int(before * RATE)
    assert 0 < added <= LEAD and 0 <= added + begin - LEAD + HOP <= 2 * HOP
    assert 0 < led[: LEAD - 2 * HOP].square().mean().sqrt() < 2 * SHARE_OF_LOUDEST * clip.abs().max()


@settings(deadline=None, max_examples=20)
@given(st.floats(0.17, 1.0), st.sampled_from([0.0, 1e-5, 1e-3, 2e-2]), st.integers(0, 5))
def test_a_clip_that_begins_quiet_is_left_alone(before, noise, seed):
    clip = spoken(before, noise, seed=seed)
    assert with_lead_in(clip) is clip


@settings(deadline=None, max_examples=20)
@given(st.floats(0, 0.5), st.sampled_from([0.0, 1e-4, 1e-3]), st.floats(0.01, 1.0))
def test_twice_is_as_once_and_loudness_changes_nothing_else(before, noise, share):
    clip = spoken(before, noise)
    led = with_lead_in(clip)
    assert with_lead_in(clip).equal(led)
    assert abs(len(with_lead_in(led)) - len(led)) <= 2 * HOP
    if noise * share > 5e-5:
        torch.testing.assert_close(with_lead_in(share * clip), share * led)


def test_the_quiet_is_the_clips_own():
    clip = spoken(0.0, noise=3e-3)
    led = with_lead_in(clip)[: LEAD // 2]
    assert abs(float(led.std()) / 3e-3 - 1) < 0.2
    dead = torch.cat([spoken(0.0, 0.0), torch.zeros(RATE)])
    assert 0 < with_lead_in(dead)[: LEAD // 2].abs().max() < 1e-4  # not digital silence even then


@pytest.mark.parametrize("samples", [0, 1, HOP, 5 * HOP - 1, 5 * HOP, RATE])
def test_steady_noise_silence_and_scraps_stay_as_they_are(samples):
    noise = torch.randn(samples, generator=torch.Generator().manual_seed(0))
    for clip in (noise, torch.zeros(samples), 1e-7 * noise, torch.ones(samples)):
        assert with_lead_in(clip) is clip


def test_the_length_follows_from_the_frames():
    assert LEAD == LEAD_FRAMES * HOP
    abrupt = spoken(0.0)
    assert len(with_lead_in(abrupt)) == len(abrupt) + LEAD
    assert with_lead_in(abrupt.double()).dtype == torch.float64


def test_speech_without_a_pause_gets_faint_quiet():
    time = torch.arange(RATE // 2) / RATE
    vowel = torch.sin(2 * np.pi * 150 * time) * (0.2 + torch.linspace(0.8, 0.0, len(time)))
    led = with_lead_in(vowel)
    assert len(led) == len(vowel) + LEAD
    assert led[:LEAD].square().mean().sqrt() <= 1.01 * SHARE_OF_LOUDEST * vowel.abs().max()
