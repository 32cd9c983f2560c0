"""Wire audio: pieces of any size give the same samples; G.711 codes."""

from __future__ import annotations

import numpy as np
import pytest

from echat.serve.protocol.wire_audio import AudioDecoder, AudioEncoder, milliseconds
from echat.serve.realtime.conversation import MIN_WINDOW, WINDOW, windows
from echat.serve.realtime.input_buffer import AudioBuffer

SPEECHLIKE = np.random.default_rng(0).normal(0, 2000, 24_000).astype("<i2")


@pytest.mark.parametrize("name", ["audio/pcm", "audio/pcmu", "audio/pcma"])
@pytest.mark.parametrize("step", [1, 7, 4801])
def test_any_cut_gives_the_same_samples(name, step):
    data = SPEECHLIKE.tobytes()[:9000]
    whole = AudioDecoder(name).push(data, last=True)
    decoder = AudioDecoder(name)
    pieces = [decoder.push(data[start : start + step]) for start in range(0, len(data), step)]
    cut = np.concatenate([*pieces, decoder.push(b"", last=True)])
    assert len(cut) == len(whole) and np.abs(cut.astype(int) - whole).max() <= 1
    assert decoder.seconds == len(data) / (48_000 if name == "audio/pcm" else 8_000)


@pytest.mark.parametrize(
    ("name", "codes"),
    [
        # (sample, code) of the tables of G.711, samples in 16 bit
        ("audio/pcmu", [(0, 0xFF), (32_124, 0x80), (-32_124, 0x00), (8, 0xFE), (-8, 0x7E)]),
        ("audio/pcma", [(8, 0xD5), (-8, 0x55), (32_256, 0xAA), (-32_256, 0x2A)]),
    ],
)
def test_g711_codes(name, codes):
    from echat.serve.protocol import wire_audio

    table = wire_audio._mu_law() if name == "audio/pcmu" else wire_audio._a_law()
    for sample, code in codes:
        assert table[code] == sample
        assert AudioEncoder(name, 8000).push(np.array([sample / 32768])) == bytes([code])


@pytest.mark.parametrize("name", ["audio/pcmu", "audio/pcma"])
def test_coding_undoes_decoding(name):
    from echat.serve.protocol import wire_audio

    table = wire_audio._mu_law() if name == "audio/pcmu" else wire_audio._a_law()
    again = np.frombuffer(AudioEncoder(name, 8000).push(table / 32768), np.uint8)
    assert np.array_equal(table[again], table)  # +0 and -0 of mu-law are one sample


def test_encoding_brings_the_rate():
    tone = 0.5 * np.sin(np.arange(22_050) / 20)
    encoder = AudioEncoder("audio/pcm", 22_050)
    data = encoder.push(tone[:10_000]) + encoder.push(tone[10_000:], last=True)
    assert milliseconds(len(data), "audio/pcm") == pytest.approx(1000, abs=2)


@pytest.mark.parametrize("name", ["audio/pcm", "audio/pcmu"])
def test_decoding_has_little_delay(name):
    decoder, step = AudioDecoder(name), 960 if name == "audio/pcm" else 160  # bytes of 20 ms
    decoded = 0
    for piece in range(1, 51):
        decoded += len(decoder.push(bytes(step)))
        assert decoded / 16 > 20 * piece - 5  # milliseconds


def test_the_buffer_is_indexed_by_sample_and_dropped_from_the_front():
    sound = AudioBuffer()
    samples = np.arange(5000, dtype=np.int16)
    for start in range(0, 5000, 300):
        sound.push(samples[start : start + 300])
    frames = list(sound.frames())
    assert [end for _, end in frames] == [512 * n / 16_000 for n in range(1, 10)]
    assert np.array_equal(np.concatenate([frame for frame, _ in frames]), samples[: 9 * 512])
    assert np.array_equal(sound.take(250, 1234), samples[250:1234])
    sound.drop_before(1000)
    assert sound.begin == 900 and np.array_equal(sound.take(0, 1000), samples[900:1000])


@pytest.mark.parametrize("extra", [0, 1, MIN_WINDOW - 1, MIN_WINDOW, WINDOW - 1])
def test_windows_add_up_and_do_not_change_with_what_follows(extra):
    samples = np.zeros(2 * WINDOW + extra, np.int16)
    cut = windows(samples)
    assert sum(map(len, cut)) == len(samples)
    assert len(cut[0]) == WINDOW and all(len(piece) >= MIN_WINDOW for piece in cut)
