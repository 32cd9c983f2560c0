"""Session updates: valid fields are applied, invalid ones reported, unchanged ones have no effect."""

from __future__ import annotations

import json

import pytest

from echat.serve.protocol.session import Session
from echat.serve.protocol.session_update import update
from echat.serve.protocol.wire import ProtocolError

BASE = Session(id="sess_1", model="echat-tiny", expires_at=5)


def changed(changes, session=BASE):
    """The updated session as a client sees it; nothing may be refused."""
    new, refused = update(session, changes)
    assert refused == []
    return new.dump()


def named(changes, session=BASE):
    """The updated session, and the fields that were refused."""
    new, refused = update(session, changes)
    for wrong in refused:
        assert str(wrong).startswith(f"{wrong.param}: ")
    return new.dump(), [wrong.param for wrong in refused]


@pytest.mark.parametrize("model", ["gpt-realtime", "", None, 5, ["a"], {"id": "x"}])
def test_any_model_is_accepted_and_the_real_one_reported(model):
    received = changed({"type": "realtime", "model": model, "instructions": "Be kind."})
    assert received["model"] == "echat-tiny" and received["instructions"] == "Be kind."


def test_the_session_object_can_be_sent_back():
    for before in (
        {},
        {"audio": {"input": {"format": {"type": "audio/pcmu"}, "turn_detection": {"type": "semantic_vad"}}}},
        {"audio": {"input": {"turn_detection": None}, "output": {"voice": {"id": "slt"}, "speed": 1.5}}},
        {"type": "transcription", "tools": [{"type": "function", "name": "f"}], "echat": {"seed": 3}},
    ):
        session, _ = update(BASE, before)
        received = session.dump()
        for target in (session, BASE):
            assert changed(received, target) == received


OLD = {
    "modalities": ["text"],
    "instructions": "hi",
    "voice": "slt",
    "input_audio_format": "g711_ulaw",
    "output_audio_format": "g711_alaw",
    "input_audio_transcription": {"model": "whisper-1"},
    "input_audio_noise_reduction": {"type": "near_field"},
    "turn_detection": None,
    "max_response_output_tokens": 77,
    "temperature": 0.8,
}


def test_the_beta_dialect_means_the_same():
    received = changed(OLD)
    given_input, given_output = received["audio"]["input"], received["audio"]["output"]
    assert received["output_modalities"] == ["text"] and received["max_output_tokens"] == 77
    assert given_input["format"] == {"type": "audio/pcmu"} and given_output["format"] == {
        "type": "audio/pcma"
    }
    assert given_input["turn_detection"] is None and given_input["transcription"]["model"] == "whisper-1"
    assert given_input["noise_reduction"] == {"type": "near_field"} and given_output["voice"] == "slt"
    assert changed({"modalities": ["text", "audio"]})["output_modalities"] == ["audio"]
    assert changed({"turn_detection": {"type": "none"}})["audio"]["input"]["turn_detection"] is None


@pytest.mark.parametrize(
    ("changes", "fields"),
    [
        ({"input_audio_format": "mp3"}, ["session.input_audio_format"]),
        ({"modalities": ["smell"], "voice": 5}, ["session.modalities", "session.voice"]),
        ({"max_response_output_tokens": -5}, ["session.max_response_output_tokens"]),
        ({"turn_detection": {"type": "server_vad", "threshold": 7}}, ["session.turn_detection.threshold"]),
        ({"max_output_tokens": 0}, ["session.max_output_tokens"]),
        ({"max_output_tokens": True}, ["session.max_output_tokens"]),
        ({"tools": "none"}, ["session.tools"]),
        ({"audio": 5}, ["session.audio"]),
        ({"audio": {"input": [1], "output": "ab"}}, ["session.audio.input", "session.audio.output"]),
        ({"audio": {"output": {"voice": {"id": 5}}}}, ["session.audio.output.voice"]),
        ({"audio": {"output": {"voice": ["slt"]}}}, ["session.audio.output.voice"]),
        ({"audio": {"output": {"speed": "1.0"}}}, ["session.audio.output.speed"]),
        (
            {"audio": {"input": {"format": {"type": "audio/pcm", "rate": 16000}}}},
            ["session.audio.input.format"],
        ),
        (
            {"audio": {"input": {"turn_detection": {"create_response": "yes", "silence_duration_ms": -1}}}},
            [
                "session.audio.input.turn_detection.silence_duration_ms",
                "session.audio.input.turn_detection.create_response",
            ],
        ),
    ],
)
def test_invalid_fields_are_reported_and_the_rest_is_applied(changes, fields):
    received, refused = named({**changes, "type": "realtime", "instructions": "kept", "speed": 1.5})
    assert refused == fields
    expected = json.loads(json.dumps(BASE.dump()))
    expected["instructions"] = "kept"
    expected["audio"]["output"]["speed"] = 1.5
    assert received == expected


def test_only_the_invalid_part_of_a_beta_field_is_dropped():
    received, refused = named({"turn_detection": {"threshold": 7, "silence_duration_ms": 400}})
    assert refused == ["session.turn_detection.threshold"]
    detection = received["audio"]["input"]["turn_detection"]
    assert (detection["threshold"], detection["silence_duration_ms"]) == (0.5, 400)


def test_a_null_where_none_is_known_changes_nothing():
    session, _ = update(BASE, {"audio": {"input": {"format": {"type": "audio/pcmu"}}}})
    nulls = {"instructions": None, "tools": None, "tool_choice": None, "audio": {"input": {"format": None}}}
    assert changed(nulls, session) == session.dump()
    assert changed({"audio": None, "type": None}, session) == session.dump()


def test_unknown_fields_are_kept():
    assert changed({"reasoning": {"effort": "low"}, "parallel_tool_calls": True})["reasoning"] == {
        "effort": "low"
    }


def test_an_unsupported_setting_is_reported_under_the_name_of_the_client():
    def no_voices(new):
        if new.audio.output.voice is not None:
            raise ProtocolError("audio.output.voice: none here", "no_voices", "audio.output.voice")

    for changes in ({"voice": "slt"}, {"audio": {"output": {"voice": "slt"}}}):
        new, refused = update(BASE, {**changes, "instructions": "kept"}, no_voices)
        assert (new.instructions, new.audio.output.voice) == ("kept", None)
        assert [wrong.code for wrong in refused] == ["no_voices"]
        assert str(refused[0]) == f"{refused[0].param}: none here"
