"""Any common file is read alike; a bad one is refused with a remedy; outputs are whole or absent."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from echat.audio.resampling import Resampler, resample
from echat.audio.waveform import AudioError, read, to_int16, write


def tone(seconds: float = 0.5, rate: int = 16_000, channels: int = 1) -> np.ndarray:
    time = np.arange(int(seconds * rate)) / rate
    return np.stack([0.3 * np.sin(2 * np.pi * 300 * (k + 1) * time) for k in range(channels)], axis=1)


@settings(deadline=None, max_examples=25)
@given(old=st.integers(4000, 48000), new=st.integers(4000, 24000), samples=st.integers(300, 3000))
def test_resampled_length_is_exact_for_any_rates(old: int, new: int, samples: int) -> None:
    out = resample(torch.ones(samples), old, new)
    assert out.shape == (-(-samples * new // old),)
    assert torch.isfinite(out).all()


@pytest.mark.parametrize("pair", [(24_000, 16_000), (8_000, 16_000), (22_050, 24_000)])
@pytest.mark.parametrize("step", [1, 7, 480, 10_000])
def test_resampling_piece_by_piece_equals_the_whole_and_holds_little_back(pair, step):
    waveform = np.random.default_rng(0).normal(0, 1, 4_003)
    resampler, pieces, held_back = Resampler(*pair, width=6), [], 0.0
    for start in range(0, len(waveform), step):
        pieces.append(resampler.push(waveform[start : start + step]))
        received = min(start + step, len(waveform)) / pair[0]
        held_back = max(held_back, received - sum(map(len, pieces)) / pair[1])
    pieces.append(resampler.push(np.zeros(0), last=True))
    whole = resample(torch.from_numpy(waveform), *pair).numpy()
    np.testing.assert_allclose(np.concatenate(pieces), whole, atol=1e-12)
    assert held_back < 0.008


def test_a_stream_keeps_what_is_above_the_band_out_of_it():
    tone = np.sin(2 * np.pi * 8_400 * np.arange(24_000) / 24_000)
    assert Resampler(24_000, 16_000).push(tone)[100:].std() < 0.02 * tone.std()


@pytest.mark.parametrize(
    ("suffix", "subtype", "tolerance"),
    [("wav", "PCM_16", 1e-4), ("wav", "PCM_U8", 2e-2), ("wav", "PCM_24", 1e-5), ("wav", "FLOAT", 1e-6)]
    + [("wav", "DOUBLE", 1e-6), ("flac", "PCM_16", 1e-4), ("ogg", "VORBIS", 0.1), ("ogg", "OPUS", 0.1)]
    + [("mp3", "MPEG_LAYER_III", 0.1)],
)
@pytest.mark.parametrize("channels", [1, 2])
def test_formats_and_channels_read_as_the_mean(
    tmp_path: Path, suffix: str, subtype: str, tolerance: float, channels: int
) -> None:
    path = tmp_path / f"tone.{suffix}"
    samples = tone(channels=channels)
    soundfile.write(path, samples, 16_000, subtype=subtype)
    waveform, rate = read(path)
    assert rate == 16_000 and waveform.dtype == torch.float32 and waveform.dim() == 1
    size = min(len(samples), len(waveform))
    middle = slice(2000, size - 2000)
    mean = torch.from_numpy(samples.mean(axis=1)).float()
    if suffix != "mp3":  # mp3 adds a delay
        assert (waveform[middle] - mean[middle]).abs().max() < tolerance
    assert abs(waveform.std() - mean.std()) < 0.05
    assert torch.equal(read(path.read_bytes())[0], waveform)


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 44100, 48000])
def test_six_channels_at_any_rate_become_16_khz(tmp_path: Path, rate: int) -> None:
    path = tmp_path / "six.wav"
    soundfile.write(path, tone(rate=rate, channels=6), rate)
    waveform, new_rate = read(path, 16_000)
    assert new_rate == 16_000 and abs(len(waveform) - 8000) <= 1


def test_pcm_is_divided_by_32768(tmp_path: Path) -> None:
    path = tmp_path / "pcm.wav"
    values = np.array([-32768, -1, 0, 1, 32767] * 200, dtype=np.int16)
    soundfile.write(path, values, 16_000)
    assert torch.equal(read(path)[0], torch.from_numpy(values).float() / 32768)


def test_16_bit_samples_come_back_and_others_are_clipped() -> None:
    every = np.arange(-32768, 32768, dtype=np.int16)
    waveform = every.astype(np.float32) / 32768
    assert np.array_equal(to_int16(waveform), every)
    assert np.array_equal(to_int16(torch.from_numpy(waveform)), every)
    assert to_int16(np.array([-2.0, 1.0, 7.5 / 32768, 8.5 / 32768])).tolist() == [-32768, 32767, 8, 8]


def whole_wav(tmp_path: Path) -> bytes:
    path = tmp_path / "whole.wav"
    soundfile.write(path, tone(), 16_000)
    return path.read_bytes()


def encoded(tmp_path: Path, suffix: str, subtype: str) -> bytes:
    path = tmp_path / f"whole.{suffix}"
    soundfile.write(path, tone(2.0), 16_000, subtype=subtype)
    return path.read_bytes()


@pytest.mark.parametrize("cut", [1, 5000, 15900, 15980])
def test_cut_off_wav_says_so(tmp_path: Path, cut: int) -> None:
    with pytest.raises(AudioError, match="cut off"):
        read(whole_wav(tmp_path)[:-cut])


@pytest.mark.parametrize(("suffix", "subtype"), [("flac", "PCM_16"), ("ogg", "VORBIS"), ("ogg", "OPUS")])
def test_cut_off_compressed_file_is_refused(tmp_path: Path, suffix: str, subtype: str) -> None:
    data = encoded(tmp_path, suffix, subtype)
    with pytest.raises(AudioError, match="cut off|do not decode"):
        read(data[: len(data) * 2 // 3])


def with_sizes(data: bytes, riff: int | None = None, sound: int | None = None) -> bytes:
    """The same file with other lengths in its header."""
    changed, at = bytearray(data), data.index(b"data") + 4
    if riff is not None:
        changed[4:8] = struct.pack("<I", riff)
    if sound is not None:
        changed[at : at + 4] = struct.pack("<I", sound)
    return bytes(changed)


TRUE = 16_000  # bytes of sound in `whole_wav`


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "FLOAT", "ULAW"])
@pytest.mark.parametrize("behind", [b"", b"LIST\4\0\0\0abcd"])
@pytest.mark.parametrize("riff", [None, 0, 36, 0xFFFF_FFFF])
def test_a_wrong_length_in_the_header_loses_nothing(tmp_path, subtype, behind, riff):
    path = tmp_path / "whole.wav"
    soundfile.write(path, tone(), 16_000, subtype=subtype)
    data, (expected, _) = path.read_bytes(), read(path)
    true = struct.unpack_from("<I", data, data.index(b"data") + 4)[0]
    sizes = [true] if behind else [true, 0, 0xFFFF_FFFF, 0x7FFF_FFFF, true + 44, true + 4, true - 12 * 80, 48]
    for size in sizes:
        found, _ = read(with_sizes(data + behind, riff, size))
        torch.testing.assert_close(found, expected, msg=f"{size} for {true} bytes")


def test_a_length_is_believed_where_the_file_ends_with_it_or_a_tag_follows(tmp_path):
    data = whole_wav(tmp_path)
    for behind in (b"TAG" + bytes(125), b"ID3\4\0" + bytes(60), b"\0", b"id3 \2\0\0\0ab"):
        assert len(read(data + behind)[0]) == TRUE // 2
    with pytest.raises(AudioError, match="0 ms"):
        read(with_sizes(data, sound=0)[:-TRUE] + b"LIST\4\0\0\0abcd")


def test_a_wav_whose_sizes_agree_about_much_more_than_is_there_is_cut_off(tmp_path):
    data = whole_wav(tmp_path)
    far = with_sizes(data, TRUE + 36 + 90_000, TRUE + 90_000)
    with pytest.raises(AudioError, match="cut off"):
        read(far)
    assert len(read(with_sizes(far, riff=len(data) - 8))[0]) == TRUE // 2  # the file itself is whole


@pytest.mark.parametrize("channels", [2, 3, 6])
@pytest.mark.parametrize("echo", [-1.0, -0.9])
def test_channels_that_cancel_each_other_leave_the_loudest(tmp_path, channels, echo):
    path, voice = tmp_path / "sound.wav", tone()[:, 0]
    samples = np.zeros((len(voice), channels))
    samples[:, 0], samples[:, -1] = echo * voice, voice
    soundfile.write(path, samples, 16_000, subtype="FLOAT")
    found = read(path)[0]
    torch.testing.assert_close(
        found.sign()[1] * found, torch.from_numpy(voice).float()
    )  # of two alike, either


@pytest.mark.parametrize("share", [1.0, 0.5, 0.0])
def test_channels_that_do_not_cancel_are_averaged(tmp_path, share):
    path, rng = tmp_path / "sound.wav", np.random.default_rng(0)
    common, own = rng.normal(0, 0.1, (8000, 1)), rng.normal(0, 0.1, (8000, 2))
    samples = share * common + (1 - share) * own
    soundfile.write(path, samples, 16_000, subtype="FLOAT")
    torch.testing.assert_close(read(path)[0], torch.from_numpy(samples.mean(axis=1)).float())
    soundfile.write(path, samples * [0.0, 1.0], 16_000, subtype="FLOAT")  # one channel is silent
    torch.testing.assert_close(read(path)[0], torch.from_numpy(samples[:, 1] / 2).float())


@pytest.mark.parametrize("scale", [2.0**7, 2.0**15, 2.0**23, 2.0**31])
def test_floats_in_the_scale_of_integers_are_brought_to_full_scale(tmp_path, scale):
    path, samples = tmp_path / "sound.wav", tone()[:, 0]
    soundfile.write(path, samples * scale, 16_000, subtype="DOUBLE")
    torch.testing.assert_close(read(path)[0], torch.from_numpy(samples).float())
    for gain in (1.0, 4.0, 20.0):  # a peak of 0.3, 1.2 and 6: too loud, but nobody's integers
        soundfile.write(path, samples * gain, 16_000, subtype="FLOAT")
        torch.testing.assert_close(read(path)[0], torch.from_numpy(samples * gain).float())


def test_bad_sources_are_named(tmp_path: Path) -> None:
    text = tmp_path / "speech.wav"
    text.write_text("once upon a time there was no sound at all\n" * 20)
    empty = tmp_path / "empty.wav"
    empty.touch()
    for source, message in [
        (tmp_path / "nowhere.wav", "found nothing there"),
        (tmp_path, "found a folder"),
        (empty, "0 bytes"),
        (text, "found text"),
        (bytes(range(256)) * 9, "do not decode"),
    ]:
        with pytest.raises(AudioError, match=message):
            read(source)


def test_unusable_sound_is_named(tmp_path: Path) -> None:
    path = tmp_path / "sound.wav"

    def refused(samples: np.ndarray, message: str, **limits: float) -> None:
        soundfile.write(path, samples, 16_000, subtype="FLOAT")
        with pytest.raises(AudioError, match=message):
            read(path, **limits)

    refused(tone()[:160, 0], "25 ms of sound, found 10 ms")
    refused(np.zeros(0), "found 0 ms")
    refused(np.zeros(16_000), "digital silence")
    refused(np.where(np.arange(8000) == 77, np.nan, tone()[:, 0]), "nan at sample 77")
    refused(np.where(np.arange(8000) == 5, np.inf, tone()[:, 0]), "inf at sample 5")
    refused(tone()[:, 0], "at most 0.2 s of sound, found 0.5 s", max_seconds=0.2)


def test_silence_is_read_when_allowed(tmp_path: Path) -> None:
    path = tmp_path / "silence.wav"
    soundfile.write(path, np.zeros(1600), 16_000)
    assert read(path, allow_silence=True)[0].eq(0).all()


@pytest.mark.parametrize(("name", "bits"), [("a.wav", 16), ("a.wav", 32), ("a.flac", 16)])
def test_reading_undoes_writing(tmp_path: Path, name: str, bits: int) -> None:
    waveform = torch.from_numpy(tone()[:, 0]).float()
    write(tmp_path / name, waveform, 16_000, bits)
    back, rate = read(tmp_path / name)
    assert rate == 16_000
    torch.testing.assert_close(back, waveform, atol=1 / 32768, rtol=0)
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_refused_writes_leave_nothing(tmp_path: Path) -> None:
    for name, waveform, message in [
        ("a.xyz", torch.zeros(9), "ending in .wav"),
        ("a.wav", torch.tensor([float("nan")]), "NaN"),
        ("a.wav", torch.zeros(2, 9), "mono"),
        ("no/a.wav", torch.zeros(9), "existing folder"),
    ]:
        with pytest.raises(AudioError, match=message):
            write(tmp_path / name, waveform, 16_000)
    assert not list(tmp_path.iterdir())
