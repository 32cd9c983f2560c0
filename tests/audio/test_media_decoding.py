"""What browsers and phones record is read; a file that breaks off or is broken ends in one line."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np
import pytest

from echat.audio import media_decoding
from echat.audio.containers import MEDIA_SUFFIXES, PLAIN_SUFFIXES
from echat.audio.waveform import AudioError, read

KINDS = {"webm": ("webm", "libopus", 48_000), "m4a": ("mp4", "aac", 44_100), "3gp": ("3gp", "aac", 16_000)}
KINDS |= {
    "aac": ("adts", "aac", 44_100),
    "amr": ("amr", "libopencore_amrnb", 8_000),
    "wma": ("asf", "wmav2", 16_000),
}


@pytest.fixture(scope="module")
def recorded():
    """`recorded(kind)`: half a second of a tone of 440 Hz, in one channel."""
    av = pytest.importorskip("av", reason="needs the media extra")

    def make(kind: str, seconds: float = 0.5) -> bytes:
        form, codec, rate = KINDS[kind]
        if codec not in av.codecs_available:
            pytest.skip(f"PyAV without {codec}")
        tone = 0.3 * np.sin(2 * np.pi * 440 * np.arange(int(seconds * rate)) / rate)
        stream = io.BytesIO()
        with av.open(stream, "w", format=form) as file:
            track = file.add_stream(codec, rate=rate, layout="mono")
            track.bit_rate = 12_200 if kind == "amr" else 48_000
            frame = av.AudioFrame.from_ndarray((tone * 32767).astype(np.int16)[None], "s16", "mono")
            frame.rate = rate
            resampler = av.AudioResampler(track.format, "mono", rate, track.codec_context.frame_size or 0)
            for part in [*resampler.resample(frame), *resampler.resample(None), None]:
                file.mux(track.encode(part))
        return stream.getvalue()

    return make


@pytest.mark.parametrize("kind", KINDS)
def test_a_recording_of_any_format_is_decoded(recorded, kind):
    waveform, rate = read(recorded(kind), 16_000)
    assert rate == 16_000 and abs(len(waveform) - 8000) < 1600
    middle = waveform[2000:6000].numpy()
    assert abs(np.abs(np.fft.rfft(middle)).argmax() * 4 - 440) <= 8
    assert abs(np.abs(middle).max() - 0.3) < 0.06


@pytest.mark.parametrize("kind", KINDS)
def test_a_recording_that_breaks_off_says_so_wherever_it_does(recorded, kind):
    data = recorded(kind)
    for cut in {len(data) * share // 7 for share in range(1, 7)} | {len(data) - 1, 20}:
        with pytest.raises(AudioError) as refused:
            read(data[:cut])
        assert refused.value.kind in ("cut off", "undecodable")


@pytest.mark.parametrize("kind", KINDS)
def test_broken_bytes_give_sound_or_one_kind_of_error(recorded, kind):
    data, rng = recorded(kind), np.random.default_rng(0)
    for _ in range(10):
        broken = np.frombuffer(data, np.uint8).copy()
        broken[rng.integers(0, len(data), 40)] = rng.integers(0, 256, 40)
        try:
            waveform, _ = read(broken.tobytes())
        except AudioError:
            continue
        assert waveform.dim() == 1 and len(waveform)


@pytest.mark.parametrize("kind", ["m4a", "3gp", "aac"])
def test_a_tag_behind_the_sound_does_no_harm(recorded, kind):
    data = recorded(kind)
    assert read(data + b"TAG" + b"Song title".ljust(125))[0].equal(read(data)[0])


def test_a_stretch_and_a_bound_hold_for_them_too(recorded):
    data = recorded("webm", 2.0)
    whole, rate = read(data)
    part, _ = read(data, start_seconds=0.5, end_seconds=1.0)
    assert part.equal(whole[rate // 2 : rate])
    with pytest.raises(AudioError, match="at most 1 s"):
        read(data, max_seconds=1.0)


def without(monkeypatch: pytest.MonkeyPatch, program: str | None = None) -> None:
    """No PyAV; for ffmpeg a program of the test's own, or nothing."""
    find_spec = media_decoding.importlib.util.find_spec
    monkeypatch.setattr(
        media_decoding.importlib.util, "find_spec", lambda name: None if name == "av" else find_spec(name)
    )
    monkeypatch.setattr(media_decoding.shutil, "which", lambda name: program)


HEAD = {"webm": b"\x1a\x45\xdf\xa3", "mp4": b"\0\0\0\x1cftypM4A ", "amr": b"#!AMR\n", "aac": b"\xff\xf1\x50"}


@pytest.mark.parametrize("name", HEAD)
def test_without_a_decoder_the_message_names_the_remedy_and_no_suffix_is_promised(monkeypatch, name):
    without(monkeypatch)
    with pytest.raises(AudioError, match=f"found {name}.*echat-speech\\[media\\].*ffmpeg.*wav"):
        read(HEAD[name] + bytes(100))
    assert media_decoding.readable_suffixes() == PLAIN_SUFFIXES
    monkeypatch.setattr(media_decoding.shutil, "which", lambda name: f"/usr/bin/{name}")
    assert media_decoding.readable_suffixes() == PLAIN_SUFFIXES + MEDIA_SUFFIXES


FFMPEG = """#!{python}
import sys
given = sys.argv[1:]
asked = dict(zip(given, given[1:]))
data = open(asked["-i"], "rb").read()
assert asked["-f"] != "mp3" and asked["-protocol_whitelist"] == "file" and "-nostdin" in given
if data[-1] == 0:
    sys.exit("Invalid data found\\nand more")
import io, numpy, soundfile
wav = io.BytesIO()
soundfile.write(wav, numpy.full((800, 2), len(data) / 1000), 8000, format="WAV", subtype="FLOAT")
sys.stdout.buffer.write(wav.getvalue())
"""


def test_without_pyav_the_program_gets_the_bytes_and_nothing_else(monkeypatch, tmp_path):
    program = tmp_path / "ffmpeg"
    program.write_text(FFMPEG.format(python=sys.executable))
    program.chmod(0o755)
    without(monkeypatch, str(program))
    data = b"#!AMR\n" + bytes([4]) + bytes([1] * 12)
    waveform, rate = read(data)
    assert rate == 8000 and len(waveform) == 800
    assert waveform.sub(len(data) / 1000).abs().max() < 1e-6
    with pytest.raises(AudioError, match="Invalid data found") as refused:
        read(data[:-1] + b"\0")
    assert refused.value.kind == "undecodable" and "and more" not in str(refused.value)


def test_a_folder_a_pipe_and_a_device_are_refused_at_once(tmp_path: Path):
    import os

    os.mkfifo(tmp_path / "pipe.wav")
    for path, found in [
        (tmp_path / "pipe.wav", "a pipe"),
        (Path("/dev/zero"), "a device"),
        (tmp_path, "a folder"),
    ]:
        with pytest.raises(AudioError, match=f"found.*{found}"):
            read(path)
