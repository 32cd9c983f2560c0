"""Read without a decoder, a plain WAV gives the very numbers that a decoder gives."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from echat.audio.wav import PlainWav


def wav(samples: np.ndarray, rate: int = 16000, subtype: str = "PCM_16") -> bytes:
    stream = io.BytesIO()
    soundfile.write(stream, samples, rate, format="WAV", subtype=subtype)
    return stream.getvalue()


@given(st.integers(1, 500), st.integers(1, 3), st.sampled_from([8000, 16000, 44100]), st.integers(0, 9))
def test_numbers_are_those_of_the_decoder(frames, channels, rate, seed):
    samples = np.random.default_rng(seed).integers(-32768, 32768, (frames, channels)).astype(np.int16)
    data = wav(samples, rate)
    extra = b"junk" + struct.pack("<I", 3) + b"abc\0"
    for plain in (data, data[:12] + extra + data[12:]):
        found = PlainWav.of(plain)
        with soundfile.SoundFile(io.BytesIO(data)) as sound:
            assert (found.frames, found.samplerate) == (sound.frames, sound.samplerate)
            sound.seek(frames // 3)
            found.seek(frames // 3)
            for count in (7, frames):
                np.testing.assert_array_equal(found.read(count), sound.read(count, "float32", always_2d=True))


@pytest.mark.parametrize("subtype", ["PCM_24", "FLOAT", "ULAW", "PCM_U8"])
def test_anything_else_is_left_to_the_decoder(subtype):
    assert PlainWav.of(wav(np.zeros(100), subtype=subtype)) is None


@pytest.mark.parametrize("cut", [0, 3, 11, 20, 40, 100, 243])
def test_what_is_cut_off_is_left_to_the_decoder(cut):
    data = wav(np.ones(100, np.int16))
    assert len(data) == 244 and PlainWav.of(data[:cut]) is None
