"""Audio inside requests: encodings, formats, and recordings without speech."""

from __future__ import annotations

import base64
import io
from urllib.parse import quote

import httpx
import numpy as np
import pytest

from echat.serve.http.audio_files import decode_inline_audio, encode_audio_file
from echat.serve.http.errors import APIError
from echat.serve.protocol.wire import ProtocolError

PLAIN = base64.b64encode(bytes(range(256))).decode()


@pytest.mark.parametrize(
    "text",
    [
        PLAIN,
        f"data:audio/wav;base64,{PLAIN}",
        f"data:;base64,{PLAIN}",
        f"DATA:audio/webm;codecs=opus;BASE64,{PLAIN}",
        f"data:audio/wav;base64,{quote(PLAIN)}",
        f"data:application/octet-stream,{quote(bytes(range(256)))}",
        "\n".join(PLAIN[at : at + 76] for at in range(0, len(PLAIN), 76)),
    ],
)
def test_inline_audio_is_decoded_from_every_encoding(text):
    assert decode_inline_audio(text, "here") == bytes(range(256))


@pytest.mark.parametrize(
    "text", ["data:audio/wav;base64,?", "no base64!", "data:audio/wav;base64", "/etc/passwd!"]
)
def test_other_text_is_refused_by_name(text):
    with pytest.raises(ProtocolError, match="here: expected base64"):
        decode_inline_audio(text, "here")


@pytest.mark.parametrize("url", ["https://example.org/a.wav", "file:///etc/passwd", "HTTP://localhost:1/a"])
def test_nothing_is_fetched(url):
    with pytest.raises(APIError, match="here: .*remote address"):
        decode_inline_audio(url, "here")


def asked(live, part, **more):
    body = {"messages": [{"role": "user", "content": [part]}], "seed": 1, **more}
    return httpx.post(f"{live.url}/chat/completions", json=body, timeout=60)


def test_all_kinds_of_audio_parts_give_the_same_answer(live, question):
    encoded = base64.b64encode(encode_audio_file("wav", question)).decode()
    uri = f"data:audio/wav;base64,{encoded}"
    parts = [
        {"type": "input_audio", "input_audio": {"data": encoded, "format": "wav"}},
        {"type": "input_audio", "input_audio": {"data": uri}},
        {"type": "audio_url", "audio_url": {"url": uri}},
    ]
    answers = [asked(live, part) for part in parts]
    assert [answer.status_code for answer in answers] == [200] * 3
    words = [answer.json()["choices"][0]["message"]["content"] for answer in answers]
    assert words[0] and words == [words[0]] * 3


@pytest.mark.parametrize(
    ("part", "says"),
    [
        ({"type": "audio_url", "audio_url": {"url": "https://example.org/a.wav"}}, "audio_url.url"),
        ({"type": "input_audio", "input_audio": {"data": "ftp://example.org/a"}}, "input_audio.data"),
        ({"type": "input_audio"}, "input_audio with data"),
        ({"type": "video_url", "video_url": {"url": "data:,"}}, "video_url"),
        (
            {"type": "input_audio", "input_audio": {"data": "data:audio/wav;base64,AAAA"}},
            "expected an audio file",
        ),
    ],
)
def test_other_parts_are_refused_by_name(live, part, says):
    answer = asked(live, part)
    assert answer.status_code == 400 and says in answer.json()["error"]["message"]


def transcribed(live, data: bytes, name: str = "q.wav", **form):
    return httpx.post(f"{live.url}/audio/transcriptions", files={"file": (name, data)}, data=form, timeout=60)


def test_a_recording_of_a_browser_is_transcribed(live, question):
    av = pytest.importorskip("av", reason="needs the media extra")
    stream, samples = io.BytesIO(), np.repeat(np.frombuffer(question, "<i2"), 2)[None]
    with av.open(stream, "w", format="webm") as file:
        track = file.add_stream("libopus", rate=48_000, layout="mono")
        frame = av.AudioFrame.from_ndarray(samples, "s16", "mono")
        frame.rate = 48_000
        for part in [*av.AudioResampler("s16", "mono", 48_000, 960).resample(frame), None]:
            file.mux(track.encode(part))
    transcript, words = (
        transcribed(live, data).json()["text"]
        for data in (stream.getvalue(), encode_audio_file("wav", question))
    )
    assert len(set(transcript.split()) & set(words.split())) >= len(words.split()) // 2 > 1
    cut = transcribed(live, stream.getvalue()[:-200])
    assert cut.status_code == 400 and "cut off" in cut.json()["error"]["message"]


ROOM = np.random.default_rng(0).normal(0, 30, 36_000)


@pytest.mark.parametrize("samples", [0 * ROOM, ROOM / 30, ROOM], ids=["digital", "dither", "room"])
def test_without_speech_the_transcript_is_empty(live, samples):
    data = encode_audio_file("wav", np.round(samples).astype("<i2").tobytes())
    plain, verbose = (transcribed(live, data, response_format=f).json() for f in ("json", "verbose_json"))
    assert plain["text"] == verbose["text"] == "" and verbose["segments"] == []
    assert verbose["duration"] == pytest.approx(1.5, abs=0.01)
    assert transcribed(live, data, response_format="text").text == "\n"
    assert "-->" not in transcribed(live, data, response_format="srt").text
    assert '"text": ""' in transcribed(live, data, stream="true").text.replace('":"', '": "')


def test_word_timestamps_are_refused_and_segment_timestamps_given(live, question):
    data = encode_audio_file("wav", question)
    refused = transcribed(live, data, response_format="verbose_json", **{"timestamp_granularities[]": "word"})
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "timestamp_granularities[]"
    given = transcribed(
        live, data, response_format="verbose_json", **{"timestamp_granularities[]": "segment"}
    )
    assert given.status_code == 200 and given.json()["segments"]
