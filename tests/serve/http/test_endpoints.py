"""HTTP endpoints, with the official Python client."""

from __future__ import annotations

import base64
import contextlib
import io
import json
from typing import Any

import httpx
import openai
import pytest
import soundfile

from echat.serve.http.audio_files import encode_audio_file


@pytest.fixture(scope="module")
def client(live: Any) -> openai.OpenAI:
    return openai.OpenAI(api_key="any", base_url=live.url, max_retries=0)


@pytest.fixture(scope="module")
def wav(question: bytes) -> bytes:
    return encode_audio_file("wav", question)


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


@pytest.mark.slow
def test_every_sentence_of_a_text_is_synthesized(client):
    text = "Come back when the sun is out again. " * 6
    pcm = client.audio.speech.create(model="m", voice="slt", input=text, response_format="pcm").read()
    assert len(pcm) / 2 / 24_000 > 7  # seconds: 54 syllables; the model says no more than 4 s in one breath


@pytest.mark.parametrize("form", ["mp3", "wav"])
@pytest.mark.parametrize("text", ["...", "-", "😀", " ", "\n\n", "---", "привет", "你好"])
def test_a_text_without_pronounceable_words_is_refused(client, text, form):
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
    received = list(client.audio.transcriptions.create(model="echat-tiny", file=file, stream=True))
    assert received[-1].type == "transcript.text.done" and received[-1].text == plain.text
    assert "".join(event.delta for event in received[:-1]) == plain.text


def spoken(wav: bytes) -> dict[str, Any]:
    sound = {"data": base64.b64encode(wav).decode(), "format": "wav"}
    return {"role": "user", "content": [{"type": "input_audio", "input_audio": sound}]}


def test_an_answer_without_text_is_an_error(client, monkeypatch):
    monkeypatch.setattr("echat.infer.reply_stream.find_defect", lambda reply, task: "no text")
    messages = [{"role": "user", "content": "i lost my job"}]
    with pytest.raises(openai.InternalServerError, match="no text") as refused:
        client.chat.completions.create(model="echat-tiny", messages=messages)
    assert refused.value.code == "no_answer"


@pytest.mark.slow
def test_completions_with_audio(client, wav):
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
    # It was trained on single turns: the earlier one is dropped, the answer is that to the question.
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


def test_an_invalid_audio_file_is_refused(live, client):
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


def test_metrics(live):
    root = live.url.removesuffix("/v1")
    assert httpx.get(f"{root}/healthz").json()["status"] == "ok"
    numbers = httpx.get(f"{root}/metrics").text
    assert "echat_sessions_open" in numbers and "echat_first_audio_seconds_bucket" in numbers


def chat(live: Any, text: str, **settings: Any) -> httpx.Response:
    body = {"messages": [{"role": "user", "content": text}], "seed": 0, **settings}
    return httpx.post(f"{live.url}/chat/completions", json=body, timeout=120)


@pytest.mark.parametrize("think", ["label", "language"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_thought_that_is_cut_is_never_content(live, think, stream):
    for most in (1, 2, 3, 5, 9):
        answer = chat(live, "i lost my keys", max_tokens=most, stream=stream, echat={"think": think})
        if not stream:
            (choice,) = answer.json()["choices"]
            assert (choice["message"]["content"], choice["finish_reason"]) == ("", "length")
            continue
        received = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: {")]
        assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in received) == ""
        assert received[-1]["choices"][0]["finish_reason"] == "length"


def test_an_answer_without_audio_is_an_error(live):
    settings = {"modalities": ["text", "audio"], "audio": {"voice": "alloy", "format": "wav"}}
    answer = chat(live, "i lost my keys", max_tokens=2, **settings)
    assert answer.status_code == 400
    assert (answer.json()["error"]["param"], answer.json()["error"]["code"]) == ("max_tokens", "no_sound")


@pytest.mark.parametrize("seed", [2**64, -(2**63) - 1, 10**300, -1])
def test_any_whole_number_is_a_seed(live, seed):
    first, again = (chat(live, "hello", seed=seed) for _ in range(2))
    assert first.status_code == 200
    assert first.json()["choices"] == again.json()["choices"]


def test_a_failing_stream_ends_with_an_error_event(serving, monkeypatch):
    with serving() as live:
        async_engine = live.app.state.app.async_engine
        begun = async_engine.reply

        def failing(*args: Any, **settings: Any) -> Any:
            stream = begun(*args, **settings)

            async def one_event() -> Any:
                async for event in stream:
                    yield event
                    raise RuntimeError("broken within")

            stream_type = type("Stream", (), {"__aiter__": lambda self: one_event(), "cancel": stream.cancel})
            return stream_type()

        monkeypatch.setattr(async_engine, "reply", failing, raising=False)
        answer = chat(live, "hello", stream=True)
    lines = [line[6:] for line in answer.text.splitlines() if line.startswith("data: ")]
    assert answer.status_code == 200 and lines[-1] == "[DONE]"
    assert json.loads(lines[-2])["error"]["type"] == "server_error" and "broken within" not in answer.text


@pytest.mark.parametrize(
    ("messages", "name"),
    [
        ([("user", 40_000)], "limits.text_characters"),
        ([("system", 40_000), ("user", 5)], "limits.text_characters"),
        ([("user", 30_000), ("assistant", 30_000)] * 3 + [("user", 5)], "limits.context_characters"),
        ([("user", 30_000)], "positions"),
    ],
)
def test_too_long_texts_are_refused_by_name(live, messages, name):
    body = {
        "messages": [{"role": role, "content": ("how are you " * count)[:count]} for role, count in messages]
    }
    answer = httpx.post(f"{live.url}/chat/completions", json=body, timeout=120)
    assert answer.status_code == 400 and name in answer.json()["error"]["message"]


def test_a_long_history_is_truncated_not_refused(live):
    turns = [("user", 10_000), ("assistant", 10_000)] * 5 + [("user", 30)]
    body = {
        "messages": [{"role": role, "content": ("how are you " * count)[:count]} for role, count in turns]
    }
    answer = httpx.post(f"{live.url}/chat/completions", json={**body, "max_tokens": 1}, timeout=120)
    assert answer.status_code == 200 and answer.json()["usage"]["prompt_tokens"] < 3072


def test_a_body_of_millions_of_values_is_refused_before_parsing(live):
    body = b'{"messages": [' + b"[]," * 2_000_000 + b"[]]}"
    headers = {"Content-Type": "application/json"}
    answer = httpx.post(f"{live.url}/chat/completions", content=body, headers=headers)
    assert answer.status_code == 400 and "limits.message_values" in answer.json()["error"]["message"]


def test_one_client_leaves_slots_to_others(live):
    import asyncio

    from echat.serve.app_state import App
    from echat.serve.http.errors import APIError
    from echat.serve.http.request_slots import RequestSlots

    async def in_use() -> tuple[str, str]:
        app: App = live.app.state.app
        slots = RequestSlots(app)
        limits = app.config.limits
        async with contextlib.AsyncExitStack() as held:
            for _ in range(limits.requests_per_client):
                await held.enter_async_context(slots.acquire("greedy"))
            with pytest.raises(APIError) as refused:
                await held.enter_async_context(slots.acquire("greedy"))
            await held.enter_async_context(slots.acquire("modest"))
            assert limits.requests_per_client < limits.requests
        assert slots.in_use == 0
        return str(refused.value), slots.acquire.__name__

    assert "limits.requests_per_client" in asyncio.run(in_use())[0]


def test_an_upload_never_touches_the_disk(live, client, question, monkeypatch):
    import tempfile

    def refuse(self: Any) -> None:
        raise AssertionError("an upload was moved to a file")

    monkeypatch.setattr(tempfile.SpooledTemporaryFile, "rollover", refuse)
    large = encode_audio_file("wav", bytes(3 * 2**20) + question)
    answer = client.audio.transcriptions.create(model="echat-tiny", file=("q.wav", large))
    assert isinstance(answer.text, str)


@pytest.mark.parametrize(
    ("form", "param"),
    [
        ({"data": {"model": "echat-tiny"}}, "file"),
        ({"files": {"file": ("q.wav", b"")}, "data": {"response_format": "docx"}}, "response_format"),
        ({"files": {"file": (None, "words, no file")}}, "file"),
        ({"content": b"{}", "headers": {"Content-Type": "application/json"}}, "file"),
        ({"content": b"--x", "headers": {"Content-Type": "multipart/form-data; boundary=y"}}, "file"),
        ({"content": b"--x", "headers": {"Content-Type": "multipart/form-data"}}, "file"),
    ],
)
def test_an_invalid_form_is_refused_by_name(live, form, param):
    answer = httpx.post(f"{live.url}/audio/transcriptions", **form)
    assert answer.status_code == 400 and answer.json()["error"]["param"] == param


def test_health_and_voices(live, client):
    root = live.url.removesuffix("/v1")
    assert httpx.get(f"{root}/health").json() == httpx.get(f"{root}/healthz").json()
    voices = httpx.get(f"{live.url}/audio/voices").json()["voices"]
    assert {"id": "slt", "name": "slt"} in voices
    schema = httpx.get(f"{root}/openapi.json").json()
    form = schema["paths"]["/v1/audio/transcriptions"]["post"]["requestBody"]["content"][
        "multipart/form-data"
    ]
    assert {"file", "language", "response_format"} <= set(form["schema"]["properties"])
    page = httpx.get(f"{root}/docs")
    assert page.headers["content-type"].startswith("text/html")
    for path in schema["paths"]:
        assert path in page.text
    assert "<script" not in page.text and "http://" not in page.text and "https://" not in page.text
