"""HTTP endpoints, with the official Python client."""

from __future__ import annotations

import base64
import io
from typing import Any

import httpx
import openai
import pytest
import soundfile

from echat.serve.sound_files import whole_file


@pytest.fixture(scope="module")
def client(live: Any) -> openai.OpenAI:
    return openai.OpenAI(api_key="any", base_url=live.url, max_retries=0)


@pytest.fixture(scope="module")
def wav(question: bytes) -> bytes:
    return whole_file("wav", question)


def test_models(client):
    (model,) = client.models.list()
    assert model.id == "echat-tiny"
    assert client.models.retrieve("echat-tiny").object == "model"
    with pytest.raises(openai.NotFoundError, match="not served"):
        client.models.retrieve("other")


@pytest.mark.parametrize("form", ["wav", "mp3", "flac", "opus", "pcm"])
@pytest.mark.slow
def test_speech_in_every_format(client, form):
    with client.audio.speech.with_streaming_response.create(
        model="echat-tiny", voice="alloy", input="thank you", response_format=form
    ) as answer:
        data = b"".join(answer.iter_bytes())
    if form == "pcm":
        assert len(data) > 2 * 24_000 * 0.3
        return
    sound, rate = soundfile.read(io.BytesIO(data))
    assert rate in (24_000, 48_000) and len(sound) / rate > 0.3 and abs(sound).max() > 0.01


@pytest.mark.slow
def test_speech_streams_a_long_text(live):
    text = "i am glad that you told me. " * 12
    body = {
        "model": "echat-tiny",
        "input": text,
        "voice": "slt",
        "response_format": "pcm",
        "stream_format": "sse",
    }
    kinds = []
    with httpx.stream("POST", f"{live.url}/audio/speech", json=body, timeout=120) as answer:
        for line in answer.iter_lines():
            if line.startswith("data: "):
                kinds.append(line.split('"type": "')[1].split('"')[0])
    assert len(kinds) > 3 and kinds[-1] == "speech.audio.done"
    assert set(kinds[:-1]) == {"speech.audio.delta"}


def test_slower_speech_is_longer(client):
    def length(speed: float) -> int:
        return len(
            client.audio.speech.create(
                model="echat-tiny",
                voice="slt",
                input="thank you for that",
                response_format="pcm",
                speed=speed,
            ).read()
        )

    assert length(0.5) > 1.3 * length(1.5)


def test_every_sentence_of_a_text_is_spoken(client):
    text = "Come back when the sun is out again. " * 6
    pcm = client.audio.speech.create(model="m", voice="slt", input=text, response_format="pcm").read()
    assert len(pcm) / 2 / 24_000 > 7  # seconds: 54 syllables; the model says no more than 4 s in one breath


@pytest.mark.parametrize("form", ["mp3", "wav"])
@pytest.mark.parametrize("text", ["...", "-", "😀", " ", "\n\n", "---", "привет", "你好"])
def test_a_text_without_words_that_can_be_said_is_refused(client, text, form):
    with pytest.raises(openai.BadRequestError, match="expected"):
        client.audio.speech.create(model="echat-tiny", voice="slt", input=text, response_format=form)


def test_transcriptions(client, wav):
    file = ("q.wav", wav)
    plain = client.audio.transcriptions.create(model="echat-tiny", file=file)
    assert len(plain.text.split()) > 3
    text = client.audio.transcriptions.create(model="echat-tiny", file=file, response_format="text")
    assert text.strip() == plain.text
    verbose = client.audio.transcriptions.create(
        model="echat-tiny", file=file, response_format="verbose_json"
    )
    seconds = (len(wav) - 44) / 48_000
    assert verbose.duration == pytest.approx(seconds, abs=0.01) and verbose.segments[0].text == plain.text
    srt = client.audio.transcriptions.create(model="echat-tiny", file=file, response_format="srt")
    assert f"00:00:00,000 --> 00:00:{int(seconds):02}," in srt
    told = list(client.audio.transcriptions.create(model="echat-tiny", file=file, stream=True))
    assert told[-1].type == "transcript.text.done" and told[-1].text == plain.text
    assert "".join(event.delta for event in told[:-1]) == plain.text


def spoken(wav: bytes) -> dict[str, Any]:
    sound = {"data": base64.b64encode(wav).decode(), "format": "wav"}
    return {"role": "user", "content": [{"type": "input_audio", "input_audio": sound}]}


def test_an_answer_without_words_is_no_success(client, monkeypatch):
    monkeypatch.setattr("echat.infer.engine.defect_of", lambda reply, task: "no text")
    messages = [{"role": "user", "content": "i lost my job"}]
    with pytest.raises(openai.InternalServerError, match="no text") as refused:
        client.chat.completions.create(model="echat-tiny", messages=messages)
    assert refused.value.code == "no_answer"


@pytest.mark.slow
def test_completions_with_sound(client, wav):
    settings = {
        "model": "echat-tiny",
        "modalities": ["text", "audio"],
        "audio": {"voice": "alloy", "format": "wav"},
        "seed": 1,
    }
    first = client.chat.completions.create(messages=[spoken(wav)], **settings)
    message = first.choices[0].message
    assert message.content is None and message.audio.transcript
    sound, rate = soundfile.read(io.BytesIO(base64.b64decode(message.audio.data)))
    assert rate == 24_000 and len(sound) > 0.3 * rate
    assert first.usage.prompt_tokens_details.audio_tokens > 20
    again = client.chat.completions.create(messages=[spoken(wav)], **settings)
    assert again.choices[0].message.audio.data == message.audio.data  # the same seed, the same answer
    history = [spoken(wav), {"role": "assistant", "audio": {"id": message.audio.id}}, spoken(wav)]
    second = client.chat.completions.create(messages=history, **settings)
    # It learned single turns: the earlier one is left out, and the answer is that to the question alone.
    assert second.usage.prompt_tokens == first.usage.prompt_tokens
    assert second.choices[0].message.audio.data == message.audio.data
    assert second.model_extra["echat"] == {"turns_left_out": 1}


def test_completions_stream(client, wav):
    chunks = list(
        client.chat.completions.create(
            model="echat-tiny",
            messages=[spoken(wav)],
            modalities=["text", "audio"],
            audio={"voice": "alloy", "format": "pcm16"},
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    deltas = [chunk.choices[0].delta.model_dump().get("audio") or {} for chunk in chunks if chunk.choices]
    words = "".join(delta.get("transcript") or "" for delta in deltas)
    sound = b"".join(base64.b64decode(delta.get("data") or "") for delta in deltas)
    assert words and len(sound) > 24_000 and deltas[0]["id"] and deltas[-1]["expires_at"]
    assert chunks[-1].usage.completion_tokens > 10
    assert chunks[-2].choices[0].finish_reason == "stop"


def test_completions_in_text_and_the_thought(client, wav):
    answer = client.chat.completions.create(
        model="echat-tiny",
        messages=[{"role": "system", "content": "be kind"}, spoken(wav)],
        extra_body={"echat": {"think": "label", "show_thought": True}},
    )
    message = answer.choices[0].message
    assert message.content and message.audio is None
    assert message.thought["form"] == "label"


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "assistant", "content": "hi"}]}, "messages"),
        ({"modalities": ["audio", "text"]}, "audio"),
        ({"modalities": ["audio"], "audio": {"format": "wav"}, "stream": True}, "audio.format"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages"),
    ],
)
def test_wrong_requests_are_refused_by_name(live, change, param):
    body = {"messages": [{"role": "user", "content": "hello"}], **change}
    answer = httpx.post(f"{live.url}/chat/completions", json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param


def test_a_sound_that_is_none(live, client):
    with pytest.raises(openai.BadRequestError, match="expected an audio file"):
        client.audio.transcriptions.create(model="echat-tiny", file=("q.wav", b"no sound at all"))


def test_a_secret_opens_the_session_it_was_made_for(live):
    import asyncio

    wanted = {"type": "realtime", "instructions": "be kind", "output_modalities": ["text"]}
    body = {"session": wanted, "expires_after": {"anchor": "created_at", "seconds": 60}}
    made = httpx.post(f"{live.url}/realtime/client_secrets", json=body).json()
    assert made["value"].startswith("ek_") and made["session"]["instructions"] == "be kind"

    async def session() -> Any:
        client = openai.AsyncOpenAI(api_key=made["value"], base_url=live.url, max_retries=0)
        async with client.realtime.connect(model="echat-tiny") as connection:
            return (await connection.recv()).session

    opened = asyncio.run(session())
    assert opened.instructions == "be kind" and opened.output_modalities == ["text"]


def test_numbers_for_the_operator(live):
    root = live.url.removesuffix("/v1")
    assert httpx.get(f"{root}/healthz").json()["status"] == "ok"
    numbers = httpx.get(f"{root}/metrics").text
    assert "echat_sessions_open" in numbers and "echat_first_audio_seconds_bucket" in numbers
