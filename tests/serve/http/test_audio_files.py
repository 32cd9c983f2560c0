"""Sound files made in pieces and whole."""

from __future__ import annotations

import numpy as np
import pytest

from echat.audio.waveform import read
from echat.serve.http.audio_files import encode_audio_file, open_audio_file

TONE = np.round(8000 * np.sin(np.arange(36_000) / 10)).astype("<i2").tobytes()  # 1.5 s


@pytest.mark.parametrize("name", ["wav", "mp3", "flac", "opus"])
@pytest.mark.parametrize("step", [2, 4802, 100_000])
def test_streamed_pieces_are_the_whole_file(name, step):
    if step == 2 and name != "wav":
        step = 998
    stream = open_audio_file(name)
    data = b"".join(stream.push(TONE[start : start + step]) for start in range(0, len(TONE), step))
    waveform, rate = read(data + stream.finish())
    assert len(waveform) / rate == pytest.approx(1.5, abs=0.1)
    assert float(waveform.abs().max()) == pytest.approx(8000 / 32768, abs=0.1)


@pytest.mark.parametrize("name", ["wav", "mp3", "flac", "opus"])
def test_a_whole_file_has_its_length(name):
    import io

    import soundfile

    info = soundfile.info(io.BytesIO(encode_audio_file(name, TONE)))
    assert info.duration == pytest.approx(1.5, abs=0.08)


def test_pcm_is_unchanged():
    stream = open_audio_file("pcm")
    assert stream.push(TONE) + stream.finish() == TONE == encode_audio_file("pcm16", TONE)
