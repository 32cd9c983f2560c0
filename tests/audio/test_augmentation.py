"""Augmentation repeats with its seed and changes what it says, nothing else."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from echat.audio import augmentation as aug
from echat.audio.features import N_MELS, log_mel


def tone(hz: float = 200.0, samples: int = 16_000) -> np.ndarray:
    return np.sin(2 * np.pi * hz * np.arange(samples) / 16_000).astype(np.float32)


def peak_hz(wave: np.ndarray) -> float:
    return float(np.argmax(np.abs(np.fft.rfft(wave))) * 16_000 / len(wave))


@pytest.mark.parametrize("colour", aug.NOISE_COLOURS)
def test_noise_has_unit_power_and_repeats(colour: str) -> None:
    first, second = (aug.noise(8000, colour, np.random.default_rng(3)) for _ in range(2))
    assert np.array_equal(first, second)
    assert np.mean(first**2) == pytest.approx(1.0, rel=1e-3)


def test_noise_of_unknown_colour_names_the_known() -> None:
    with pytest.raises(ValueError, match="white, pink"):
        aug.noise(10, "green", np.random.default_rng(0))


@pytest.mark.parametrize("snr", [-5.0, 0.0, 20.0])
def test_add_noise_reaches_the_snr(snr: float) -> None:
    clean = tone()
    mixed = aug.add_noise(clean, aug.noise(4000, "white", np.random.default_rng(1)), snr)
    found = 10 * np.log10(np.mean(clean**2) / np.mean((mixed - clean) ** 2))
    assert found == pytest.approx(snr, abs=1e-2)


def test_tensors_stay_tensors() -> None:
    wave = torch.from_numpy(tone())
    changed = [aug.gain(wave, -6.0), aug.add_noise(wave, tone(50), 10.0), aug.speed(wave, 1.1)]
    changed += [aug.time_stretch(wave, 1.2), aug.pitch(wave, 1.2)]
    assert all(isinstance(w, torch.Tensor) and torch.isfinite(w).all() for w in changed)


@pytest.mark.parametrize("factor", [0.8, 1.25])
def test_speed_moves_pitch_and_length(factor: float) -> None:
    fast = aug.speed(tone(), factor)
    assert len(fast) == round(16_000 / factor)
    assert peak_hz(fast) == pytest.approx(200 * factor, rel=0.02)


@pytest.mark.parametrize("factor", [0.8, 1.25])
def test_tempo_moves_length_only(factor: float) -> None:
    fast = aug.time_stretch(tone(), factor)
    assert len(fast) == pytest.approx(16_000 / factor, rel=0.03)
    assert peak_hz(fast) == pytest.approx(200, rel=0.02)
    assert np.std(fast) == pytest.approx(np.std(tone()), rel=0.1)


def test_pitch_moves_pitch_only() -> None:
    high = aug.pitch(tone(), 1.3)
    assert len(high) == pytest.approx(16_000, rel=0.04)
    assert peak_hz(high) == pytest.approx(260, rel=0.02)


def test_warp_by_one_is_the_identity() -> None:
    mel = torch.randn(20, 80, generator=torch.Generator().manual_seed(0))
    assert torch.equal(aug.warp_mel(mel, 1.0), mel)
    ramp = torch.arange(80.0)[None]
    torch.testing.assert_close(aug.warp_mel(ramp, 1.25)[0, :70], ramp[0, :70] / 1.25)


def test_several_factors_stretch_each_part_by_its_own() -> None:
    ramp = torch.arange(81.0)[None]
    bent = aug.warp_mel(ramp, np.array([1.0, 1.25, 0.8]))[0]
    assert float(bent[40]) == pytest.approx(40 / 1.25) and float(bent[0]) == 0 and float(bent[80]) == 80
    assert float(bent[20]) == pytest.approx(20 / 1.125) and bent.diff().ge(0).all()


def test_a_stretched_mel_is_the_mel_said_faster() -> None:
    mel = torch.randn(90, 80, generator=torch.Generator().manual_seed(0))
    assert torch.equal(aug.stretch_mel(mel, 1.0), mel)
    ramp = torch.arange(90.0)[:, None]
    fast, slow = aug.stretch_mel(ramp, 1.25)[:, 0], aug.stretch_mel(ramp, 0.8)[:, 0]
    assert (len(fast), len(slow)) == (72, 112)
    torch.testing.assert_close(fast, torch.arange(72) * 1.25)
    torch.testing.assert_close(slow[:111], torch.arange(111) * 0.8)
    assert aug.stretch_mel(ramp[:1], 3.0).shape == (1, 1)


def test_colour_is_what_a_louder_band_would_be() -> None:
    wave = torch.from_numpy(aug.noise(16_000, "white", np.random.default_rng(0))) * 0.1
    louder = log_mel(aug.gain(wave, 6.0), N_MELS)
    coloured = aug.equalize_mel(log_mel(wave, N_MELS), np.array([6.0, 6.0]))
    torch.testing.assert_close(coloured, louder, atol=1e-4, rtol=0)
    tilted = aug.equalize_mel(torch.zeros(3, 81), np.array([-4.0, 0.0, 8.0]))
    assert torch.equal(tilted[0], tilted[2])
    torch.testing.assert_close(tilted[0, [0, 20, 40, 60, 80]], torch.tensor([-4.0, -2, 0, 4, 8]) * 0.025)


def test_masks_are_zero_bounded_and_repeat() -> None:
    mel = torch.ones(200, 80)
    first, second = (aug.spec_augment(mel, np.random.default_rng(7)) for _ in range(2))
    assert torch.equal(first, second) and mel.eq(1).all()
    assert 0 < first.eq(0).sum() <= 2 * 50 * 80 + 2 * 10 * 200


def test_substitution_repeats_earlier_frames() -> None:
    mel = torch.arange(300.0)[:, None].expand(-1, 4).clone()
    changed = aug.spec_substitute(mel, np.random.default_rng(5))
    rows = changed[:, 0]
    assert (rows <= mel[:, 0]).all() and changed.shape == mel.shape
    assert int((rows != mel[:, 0]).sum()) <= 90
    assert aug.spec_substitute(torch.ones(1, 4), np.random.default_rng(5)).shape == (1, 4)


@pytest.mark.parametrize("quiet", [0.0, 0.1, 0.8])
def test_edges_change_the_quiet_around_a_sound_and_nothing_of_it(quiet):
    rng = np.random.default_rng(0)
    time = np.arange(8000) / 16_000
    around = np.zeros(int(quiet * 16_000))
    sound = np.concatenate(
        [around, 0.5 * np.sin(2 * np.pi * 200 * time + 1.0), 0 * time, np.sin(900 * time), around]
    )
    clip = (sound + 1e-3 * rng.normal(size=len(sound))).astype(np.float32)
    core = clip[len(around) : len(clip) - len(around)]
    begins = []
    for _ in range(40):
        changed = aug.vary_margins(clip, rng, 0.3)
        begin = next(at for at in range(len(changed)) if (changed[at : at + 99] == core[:99]).all())
        assert (changed[begin : begin + len(core)] == core).all()
        begins.append(begin)
        assert len(changed) - begin - len(core) <= 0.3 * 16_000 + 160
    assert min(begins) < 0.05 * 16_000 and 0.25 * 16_000 < max(begins) <= 0.3 * 16_000 + 160


def test_edges_repeat_with_a_seed_and_keep_the_kind():
    clip = np.concatenate([np.zeros(800), np.ones(8000), np.zeros(8000)]).astype(np.float32)
    first, second = (aug.vary_margins(clip, np.random.default_rng(3), 0.5) for _ in range(2))
    assert isinstance(first, np.ndarray) and first.dtype == np.float32 and (first == second).all()
    assert aug.vary_margins(torch.from_numpy(clip), np.random.default_rng(3), 0.5).equal(
        torch.from_numpy(first.copy())
    )


def test_a_room_keeps_the_sound_and_decays_after_it():
    clip = np.concatenate([np.zeros(800), tone(samples=8000)]).astype(np.float32)
    first, second = (aug.reverberate(clip, np.random.default_rng(4)) for _ in range(2))
    assert np.array_equal(first, second) and first.dtype == np.float32
    assert np.array_equal(np.abs(first[:800]) < 1e-6, np.full(800, True))  # nothing sounds before its cause
    tail = first[len(clip) :]
    assert 0.07 * 16_000 < len(tail) <= 0.2 * 16_000
    assert 0 < np.std(tail[-400:]) < 0.5 * np.std(tail[:400]) < 0.2 * np.std(clip[800:])
    pulse = np.zeros(4000, np.float32)
    pulse[100] = 1.0
    heard = aug.reverberate(pulse, np.random.default_rng(4))
    assert heard[100] == pytest.approx(1.0, abs=1e-5) and 0.1 <= np.linalg.norm(heard[101:]) <= 0.35


@pytest.mark.parametrize("seed", range(5))
def test_a_telephone_passes_its_band_alone(seed: int):
    heard = {hz: np.std(aug.telephone(tone(hz), np.random.default_rng(seed))) for hz in (100, 1000, 6000)}
    assert heard[1000] == pytest.approx(np.std(tone(1000)), rel=0.05)
    loud = tone(1000) + tone(100) + tone(6000)
    power = np.abs(np.fft.rfft(aug.telephone(loud, np.random.default_rng(seed)))) ** 2
    assert power[100] < 1e-3 * power[1000] > power[6000]


def test_a_telephone_has_the_levels_of_mu_law():
    wave = aug.telephone(tone(440.0), np.random.default_rng(0))
    assert 20 < len(np.unique(wave)) <= 255 and wave.dtype == np.float32
    silence = np.zeros(800, np.float32)
    assert np.array_equal(aug.telephone(silence, np.random.default_rng(0)), silence)


def test_chances_of_one_and_none_are_kept():
    clip = tone(6000, 4000)
    through = aug.AugmentConfig(telephone=1.0)
    assert np.std(aug.augment_waveform(clip, through, np.random.default_rng(0))) < 0.02
    roomy = aug.augment_waveform(clip, aug.AugmentConfig(room=1.0), np.random.default_rng(0))
    assert len(roomy) > len(clip)
    assert np.array_equal(aug.augment_waveform(clip, aug.AugmentConfig(), np.random.default_rng(0)), clip)
