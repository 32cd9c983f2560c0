"""Sound from wherever it lies, the same however much of it is kept."""

from __future__ import annotations

import tarfile

import numpy as np
import pytest
import soundfile

from echat.audio.waveform import AudioError, read
from echat.data.audio_loading import AudioLoader
from echat.data.sample import AudioRef

RATE = 16000


@pytest.fixture
def noise(tmp_path):
    samples = (0.1 * np.random.default_rng(0).standard_normal(3 * RATE)).astype(np.float32)
    for name in ("a.wav", "a.flac"):
        soundfile.write(tmp_path / name, samples, RATE)
    return tmp_path


@pytest.mark.parametrize(("start", "end"), [(None, None), (0.5, 1.25), (None, 0.75), (2.0, None), (2.5, 9.0)])
@pytest.mark.parametrize("name", ["a.wav", "a.flac"])
def test_a_stretch_is_the_cut_of_the_whole(noise, name, start, end):
    whole = read(noise / name, RATE)[0].numpy()
    cut = whole[round((start or 0) * RATE) : None if end is None else round(end * RATE)]
    np.testing.assert_array_equal(AudioLoader().read(AudioRef(str(noise / name), start, end)), cut)


def test_a_stretch_of_a_recording_beyond_the_longest_duration(tmp_path):
    path = tmp_path / "long.flac"
    tone = (8000 * np.sin(np.arange(1000 * 1300) / 3)).astype(np.int16)
    soundfile.write(path, tone, 1000)
    with pytest.raises(AudioError, match="at most 600 s of sound, found 1300.0 s"):
        read(path)
    loaded = AudioLoader().read(AudioRef(str(path), 1200.0, 1202.5))
    assert len(loaded) == 2.5 * RATE


def test_a_stretch_behind_the_end_is_named(noise):
    with pytest.raises(AudioError, match=r"a\.wav: expected at least 25 ms of sound, found 0 ms"):
        AudioLoader().read(AudioRef(str(noise / "a.wav"), 5.0, 6.0))


def test_members_of_tars_and_bytes_sound_like_files(noise):
    with tarfile.open(noise / "shard.tar", "w") as tar:
        tar.add(noise / "a.flac", "k.flac")
    with tarfile.open(noise / "shard.tar") as tar:
        member = tar.getmember("k.flac")
    data = (noise / "a.flac").read_bytes()
    whole = AudioLoader().read(AudioRef(str(noise / "a.flac")))
    inside = AudioRef(str(noise / "shard.tar"), offset=member.offset_data, size=len(data), member="k.flac")
    assert np.array_equal(AudioLoader().read(inside), whole)
    assert np.array_equal(AudioLoader().read(AudioRef("bytes", data=data)), whole)


def test_what_is_kept_has_a_bound_and_the_oldest_goes_first(tmp_path, monkeypatch):
    decoded = []
    for number in range(4):
        soundfile.write(tmp_path / f"{number}.wav", np.full(RATE, 0.1 * (number + 1)), RATE)
    refs = [AudioRef(str(tmp_path / f"{number}.wav")) for number in range(4)]
    monkeypatch.setattr("echat.data.audio_loading.read", lambda *a, **k: decoded.append(1) or read(*a, **k))
    sounds, uncached = AudioLoader(cache_mb=3.2e-2 * 3), AudioLoader(cache_mb=0)
    for ref in (refs[0], refs[1], refs[2], refs[0], refs[3], refs[0]):
        assert np.array_equal(sounds.read(ref), uncached.read(ref))
    assert len(decoded) == 4 + 6
    sounds.read(refs[1])  # went for the fourth
    assert len(decoded) == 4 + 6 + 1
