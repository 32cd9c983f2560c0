"""A session without a socket: a real engine, events in, events out."""

from __future__ import annotations

import asyncio
import base64
from typing import Any

import numpy as np
import pytest
from tests.serve.session_client import SessionClient

from echat.serve.realtime.send_queue import OutboundMessage, SendQueue
from echat.serve.realtime.session import RealtimeSession


@pytest.mark.slow
def test_three_minutes_of_silence(talking, quiet):
    async def dialogue(client: SessionClient) -> None:
        await client.say(quiet(180.0))
        assert client.waiting() == []
        kept = client.session.input_manager.input_buffer.audio
        assert kept.end - kept.begin < 10 * 16_000  # memory stays bounded

    talking(dialogue)


def test_music_is_not_speech(talking):
    seconds = np.arange(24_000 * 20) / 24_000
    chords = [(262, 330, 392), (294, 370, 440), (220, 277, 330), (247, 311, 370)]
    music = np.zeros(len(seconds))
    for number, chord in enumerate(chords * 5):
        part = slice(number * 24_000, (number + 1) * 24_000)
        fade = np.exp(-2 * (seconds[part] - number))
        music[part] = fade * sum(np.sin(2 * np.pi * tone * seconds[part]) for tone in chord) / 6

    async def dialogue(client: SessionClient) -> None:
        await client.say(np.round(music * 32767).astype("<i2").tobytes())
        assert client.waiting() == []

    talking(dialogue)


def loudest(sound: bytes, seconds: float) -> bytes:
    """The stretch of a question in which most is said."""
    samples, length = np.frombuffer(sound, "<i2").astype(float), int(seconds * 24_000)
    sums = np.concatenate([[0.0], np.cumsum(samples**2)])
    begin = int(np.argmax(sums[length:] - sums[:-length]))
    return sound[2 * begin : 2 * (begin + length)]


def test_a_word_of_a_third_of_a_second(talking, question, quiet):
    async def dialogue(client: SessionClient) -> None:
        await client.send("session.update", session={"type": "realtime", "output_modalities": ["text"]})
        await client.say(quiet(0.5) + loudest(question, 0.3) + quiet(1.0))
        done = await client.until("response.done")
        assert done["response"]["status"] in ("completed", "incomplete")
        assert "input_audio_buffer.speech_started" in client.kinds

    talking(dialogue)


@pytest.mark.slow
def test_a_question_of_two_minutes_is_prefilled_while_it_is_asked(talking, question, quiet):
    """Windows of 30 s that are over are not encoded again at the end."""

    async def dialogue(client: SessionClient) -> None:
        update = {"type": "realtime", "output_modalities": ["text"], "max_output_tokens": 40}
        detection = {"type": "server_vad", "silence_duration_ms": 3000}
        await client.send(
            "session.update", session={**update, "audio": {"input": {"turn_detection": detection}}}
        )
        seconds = 99
        long = (question * (1 + seconds * 48_000 // len(question)))[: seconds * 48_000]
        for start in range(0, len(long), 48_000 * 10):
            await client.say(long[start : start + 48_000 * 10])
            response_manager = client.session.response_manager
            await asyncio.gather(*response_manager._tasks)
        assert len(response_manager.prompt_cache.encoded_audio) == 3
        await client.say(quiet(3.5))
        done = await client.until("response.done")
        details = done["response"]["usage"]["input_token_details"]
        assert details["audio_tokens"] > 1200 and details["cached_tokens"] > 700

    talking(dialogue)


def test_two_questions_while_it_thinks_are_one_turn(talking, question, quiet):
    async def dialogue(client: SessionClient) -> None:
        await client.say(question + quiet(0.6))
        await client.until("response.created")
        await client.say(question + quiet(1.0))
        first = await client.until("response.done")
        second = await client.until("response.done")
        assert first["response"]["status_details"]["reason"] == "turn_detected"
        encoded_audio = second["response"]["usage"]["input_token_details"]["audio_tokens"]
        assert encoded_audio >= 2 * 30  # both are encoded
        started = client.kinds.index(
            "input_audio_buffer.speech_started", client.kinds.index("response.created")
        )
        assert started < client.kinds.index("response.done")

    talking(dialogue, guess_replies=False)


def test_going_on_after_a_pause_is_one_turn(talking, question, quiet):
    async def dialogue(client: SessionClient) -> None:
        detection = {"type": "server_vad", "silence_duration_ms": 1200}
        update = {"type": "realtime", "audio": {"input": {"turn_detection": detection}}}
        await client.send("session.update", session=update)
        words = loudest(question, 1.0)
        await client.say(words + quiet(0.4) + words + quiet(1.5))
        await client.until("response.done")
        assert client.kinds.count("input_audio_buffer.speech_started") == 1
        assert client.kinds.count("response.created") == 1

    talking(dialogue)


def test_answers_with_and_without_speculation_are_equal(talking, question, quiet):
    answers = []
    for speculative in (True, False):

        async def dialogue(client: SessionClient, speculative: bool = speculative) -> None:
            await client.send("session.update", session={"type": "realtime", "echat": {"seed": 3}})
            await client.say(question + quiet(1.0), piece=4800 if speculative else 48_000)
            await client.until("response.done")
            deltas = [e["delta"] for e in client.received if e["type"] == "response.output_audio.delta"]
            answers.append(b"".join(map(base64.b64decode, deltas)))

        talking(dialogue, guess_replies=speculative)
    assert answers[0] == answers[1] and len(answers[0]) > 24_000


async def typed(client: SessionClient, text: str) -> dict[str, Any]:
    """Type a question; the response to it."""
    content = [{"type": "input_text", "text": text}]
    await client.send(
        "conversation.item.create", item={"type": "message", "role": "user", "content": content}
    )
    await client.send("response.create", response={"output_modalities": ["text"]})
    return (await client.until("response.done"))["response"]


def test_a_later_question_is_answered_as_the_first_by_a_model_of_single_turns(talking):
    async def dialogue(client: SessionClient) -> None:
        await client.send("session.update", session={"type": "realtime", "echat": {"show_thought": True}})
        alone = await typed(client, "i lost my job")
        later = await typed(client, "I LOST MY JOB!")
        assert alone["status"] == later["status"] == "completed"
        assert alone["output"][0]["content"][0]["text"] == later["output"][0]["content"][0]["text"] != ""
        assert [answer["echat"]["turns_left_out"] for answer in (alone, later)] == [0, 1]

    talking(dialogue)


def test_an_answer_without_text_ends_as_failed(talking, monkeypatch):
    monkeypatch.setattr("echat.infer.reply_stream.find_defect", lambda reply, task: "no text")

    async def dialogue(client: SessionClient) -> None:
        response = await typed(client, "i lost my job")
        assert response["status"] == "failed"
        assert response["status_details"]["error"]["code"] == "no_answer"

    talking(dialogue)


def test_silence_after_an_answer_can_be_a_turn(talking, question, quiet):
    async def dialogue(client: SessionClient) -> None:
        detection = {"type": "server_vad", "idle_timeout_ms": 100}
        update = {
            "type": "realtime",
            "output_modalities": ["text"],
            "audio": {"input": {"turn_detection": detection}},
        }
        await client.send("session.update", session=update)
        await client.say(question + quiet(1.0))
        await client.until("response.done")
        timeout = await client.until("input_audio_buffer.timeout_triggered")
        committed = await client.until("input_audio_buffer.committed")
        assert committed["item_id"] == timeout["item_id"]
        await client.until("response.created")

    talking(dialogue)


def test_a_transcription_session_makes_no_responses(talking, question, quiet):
    async def dialogue(client: SessionClient) -> None:
        await client.send("session.update", session={"type": "transcription"})
        await client.say(question + quiet(1.0))
        await client.until("conversation.item.input_audio_transcription.completed")
        assert "response.created" not in client.kinds + client.waiting()

    talking(dialogue)


def test_beta_clients_get_beta_names(talking, question, quiet):
    async def dialogue(client: SessionClient) -> None:
        update = {"modalities": ["text", "audio"], "input_audio_format": "pcm16", "voice": "slt"}
        await client.send("session.update", session={**update, "turn_detection": {"type": "server_vad"}})
        session = (await client.until("session.updated"))["session"]
        assert session["input_audio_format"] == "pcm16" and session["modalities"] == ["text", "audio"]
        await client.say(question + quiet(1.0))
        done = await client.until("response.done")
        kinds = set(client.kinds)
        assert {
            "response.audio.delta",
            "response.audio_transcript.delta",
            "conversation.item.created",
        } <= kinds
        assert not [kind for kind in kinds if "output_audio" in kind or kind == "conversation.item.added"]
        assert done["response"]["output"][0]["content"][0]["type"] == "audio"

    talking(dialogue, beta=True)


def test_speech_suspected_is_sent_to_clients_that_request_it(talking, question, quiet):
    async def dialogue(client: SessionClient) -> None:
        options = {"pause": True, "interrupt_ms": 1000}
        await client.send("session.update", session={"type": "realtime", "echat": options})
        await client.say(question + quiet(1.0))
        await client.until("response.output_audio.delta")
        await client.say(loudest(question, 0.3) + quiet(0.5))
        await client.until("input_audio_buffer.speech_dismissed")
        assert "input_audio_buffer.speech_suspected" in client.kinds
        done = await client.until("response.done")
        assert done["response"]["status"] == "completed"

    talking(dialogue)


def test_nothing_is_recorded_unless_it_is_announced(talking, question, quiet, tmp_path):
    async def dialogue(client: SessionClient) -> None:
        assert client.waiting() == ["session.recording"]
        await client.say(question + quiet(1.0))
        await client.until("response.done")
        await asyncio.sleep(0.1)
        (folder,) = tmp_path.iterdir()
        assert folder.name == client.session.id
        assert {path.suffix for path in folder.iterdir()} == {".wav", ".jsonl"}

    talking(dialogue, recording=str(tmp_path))


def test_audio_dropped_for_a_slow_reader_is_counted(app, question, quiet):
    async def whole() -> None:
        session = RealtimeSession(app(), SendQueue(40_000))
        session.open()
        client = SessionClient(session)
        await client.say(question + quiet(1.0))
        while session.response_manager.response is None or session.response_manager.response.is_running:
            await asyncio.sleep(0.05)  # nothing is read
        done = await client.until("response.done")
        response = done["response"]
        assert response["status"] == "incomplete"
        assert response["echat"]["dropped_audio_ms"] > 0
        deltas = [e for e in client.received if e["type"] == "response.output_audio.delta"]
        assert sum(len(e["delta"]) for e in deltas) < 40_000
        await session.close()

    asyncio.run(whole())


def test_the_send_queue_takes_back_unsent_audio():
    async def whole() -> None:
        send_queue = SendQueue(100)
        assert send_queue.put(OutboundMessage("a" * 60, "r1", 10)) and not send_queue.put(
            OutboundMessage("b" * 60, "r1", 10)
        )
        assert send_queue.put(OutboundMessage("text"))  # events without sound always fit
        assert send_queue.take_back("r1") == 10 and send_queue.n_bytes == 4
        message = await send_queue.take()
        assert message is not None and message.text == "text"
        send_queue.close()
        assert await send_queue.take() is None

    asyncio.run(whole())
