"""The old names, for clients that ask for them: events out and updates in, translated at the border."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

_EVENTS = {
    "response.output_audio.delta": "response.audio.delta",
    "response.output_audio.done": "response.audio.done",
    "response.output_audio_transcript.delta": "response.audio_transcript.delta",
    "response.output_audio_transcript.done": "response.audio_transcript.done",
    "response.output_text.delta": "response.text.delta",
    "response.output_text.done": "response.text.done",
}
_PARTS = {"output_text": "text", "output_audio": "audio"}
_NEW_PARTS = {old: new for new, old in _PARTS.items()}
_FORMATS = {"audio/pcm": "pcm16", "audio/pcmu": "g711_ulaw", "audio/pcma": "g711_alaw"}
_NEW_FORMATS = {old: new for new, old in _FORMATS.items()}
_INPUT = {"turn_detection": "turn_detection", "input_audio_transcription": "transcription"}
_OUTPUT = {"voice": "voice", "speed": "speed"}


def to_old(event: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """A server event under the old names. An item that is added and done was told once then: `created`."""
    kind = event["type"]
    if kind == "conversation.item.done":
        return
    values = {**event, "type": _EVENTS.get(kind, kind)}
    if kind == "conversation.item.added":
        values["type"] = "conversation.item.created"
    if "item" in values:
        values["item"] = _old_item(values["item"])
    if "part" in values:
        values["part"] = _old_part(values["part"])
    if "response" in values:
        values["response"] = _old_response(values["response"])
    if "session" in values:
        values["session"] = _old_session(values["session"])
    yield values


def to_new(event: Mapping[str, Any]) -> dict[str, Any]:
    """A client event under the present names; what is already so stays."""
    values = dict(event)
    if isinstance(values.get("session"), Mapping):
        values["session"] = _new_session(values["session"])
    if isinstance(values.get("response"), Mapping):
        values["response"] = _new_response(values["response"])
    if isinstance(values.get("item"), Mapping) and isinstance(values["item"].get("content"), list):
        content = [
            {**part, "type": _NEW_PARTS.get(str(part.get("type")), part.get("type"))}
            if isinstance(part, Mapping)
            else part
            for part in values["item"]["content"]
        ]
        values["item"] = {**values["item"], "content": content}
    return values


def _old_part(part: Mapping[str, Any]) -> dict[str, Any]:
    return {**part, "type": _PARTS.get(part["type"], part["type"])}


def _old_item(item: Mapping[str, Any]) -> dict[str, Any]:
    return {**item, "content": [_old_part(part) for part in item.get("content") or []]}


def _old_response(response: Mapping[str, Any]) -> dict[str, Any]:
    values = dict(response)
    values["output"] = [_old_item(item) for item in values.get("output", [])]
    values["modalities"] = _old_modalities(values.pop("output_modalities", ["audio"]))
    output = (values.pop("audio", None) or {}).get("output", {})
    values |= {key: output[key] for key in ("voice",) if key in output}
    values["output_audio_format"] = _FORMATS.get(output.get("format", {}).get("type"), "pcm16")
    return values


def _old_session(session: Mapping[str, Any]) -> dict[str, Any]:
    values = {key: value for key, value in session.items() if key not in ("audio", "type")}
    heard, said = session["audio"]["input"], session["audio"]["output"]
    values["modalities"] = _old_modalities(values.pop("output_modalities"))
    values["max_response_output_tokens"] = values.pop("max_output_tokens")
    values["input_audio_format"] = _FORMATS[heard["format"]["type"]]
    values["output_audio_format"] = _FORMATS[said["format"]["type"]]
    values |= {old: heard[new] for old, new in _INPUT.items()}
    values |= {old: said[new] for old, new in _OUTPUT.items()}
    return values


def _old_modalities(modalities: list[str]) -> list[str]:
    return ["text", "audio"] if "audio" in modalities else ["text"]


def _new_session(session: Mapping[str, Any]) -> dict[str, Any]:
    values = {"type": "realtime", **_new_response(session)}
    if "max_response_output_tokens" in values:
        values["max_output_tokens"] = values.pop("max_response_output_tokens")
    heard = {new: values.pop(old) for old, new in _INPUT.items() if old in values}
    if "input_audio_format" in values:
        heard["format"] = {"type": _new_format(values.pop("input_audio_format"))}
    if heard:
        audio = dict(values.get("audio") or {})
        values["audio"] = {**audio, "input": {**(audio.get("input") or {}), **heard}}
    return values


def _new_response(response: Mapping[str, Any]) -> dict[str, Any]:
    """What sessions and the settings of a response share."""
    values = dict(response)
    if isinstance(values.get("modalities"), list):
        values["output_modalities"] = ["audio"] if "audio" in values.pop("modalities") else ["text"]
    said = {new: values.pop(old) for old, new in _OUTPUT.items() if old in values}
    if "output_audio_format" in values:
        said["format"] = {"type": _new_format(values.pop("output_audio_format"))}
    if said:
        audio = dict(values.get("audio") or {})
        values["audio"] = {**audio, "output": {**(audio.get("output") or {}), **said}}
    return values


def _new_format(name: Any) -> Any:
    return _NEW_FORMATS.get(name, name) if isinstance(name, str) else name
