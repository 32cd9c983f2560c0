"""Beta dialect of the Realtime protocol. Its fields are accepted from every client; events are sent under its
names only to clients that request it (`OpenAI-Beta: realtime=v1`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

_EVENTS = {
    "response.output_audio.delta": "response.audio.delta",
    "response.output_audio.done": "response.audio.done",
    "response.output_audio_transcript.delta": "response.audio_transcript.delta",
    "response.output_audio_transcript.done": "response.audio_transcript.done",
    "response.output_text.delta": "response.text.delta",
    "response.output_text.done": "response.text.done",
    "conversation.item.added": "conversation.item.created",
}
_PARTS = {"output_text": "text", "output_audio": "audio"}
_FORMATS = {"audio/pcm": "pcm16", "audio/pcmu": "g711_ulaw", "audio/pcma": "g711_alaw"}
_NEW_FORMATS = {old: new for new, old in _FORMATS.items()}


def _same(value: Any) -> Any:
    return value


def _new_modalities(value: Any) -> Any:
    """In the beta dialect audio always came with its text."""
    return ["audio"] if isinstance(value, list) and sorted(map(str, value)) == ["audio", "text"] else value


def _old_modalities(modalities: list[str]) -> list[str]:
    return ["text", "audio"] if "audio" in modalities else ["text"]


def _new_format(value: Any) -> Any:
    return {"type": _NEW_FORMATS.get(value, value)} if isinstance(value, str) else value


def _old_format(form: Mapping[str, Any]) -> str:
    return _FORMATS[form["type"]]


def _new_detection(value: Any) -> Any:
    return None if isinstance(value, Mapping) and value.get("type") == "none" else value


@dataclass(frozen=True)
class _Field:
    """Where a field of a beta session or response is now, and how its value translates in both directions."""

    path: tuple[str, ...]
    to_new: Callable[[Any], Any] = _same
    to_old: Callable[[Any], Any] = _same


_FIELDS = {
    "modalities": _Field(("output_modalities",), _new_modalities, _old_modalities),
    "max_response_output_tokens": _Field(("max_output_tokens",)),
    "input_audio_format": _Field(("audio", "input", "format"), _new_format, _old_format),
    "input_audio_noise_reduction": _Field(("audio", "input", "noise_reduction")),
    "input_audio_transcription": _Field(("audio", "input", "transcription")),
    "turn_detection": _Field(("audio", "input", "turn_detection"), _new_detection),
    "output_audio_format": _Field(("audio", "output", "format"), _new_format, _old_format),
    "speed": _Field(("audio", "output", "speed")),
    "voice": _Field(("audio", "output", "voice")),
}


def to_new(event: Mapping[str, Any]) -> dict[str, Any]:
    """A client event under the present names; a `session` is translated where it is merged."""
    values = dict(event)
    if values.get("type") == "transcription_session.update" and isinstance(values.get("session"), Mapping):
        values |= {"type": "session.update", "session": {**values["session"], "type": "transcription"}}
    if isinstance(values.get("response"), Mapping):
        values["response"] = new_fields(values["response"])
    return values


def new_fields(given: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a session or a response at their present paths; where both are given, the present one
    counts."""
    values = {name: value for name, value in given.items() if name not in _FIELDS}
    for name, field in _FIELDS.items():
        if name in given:
            _put(values, field.path, field.to_new(given[name]))
    return values


def given_path(given: Mapping[str, Any], path: tuple[str, ...]) -> tuple[str, ...]:
    """The path at which the client wrote what `new_fields` put at `path`, as far as it exists."""
    for name, field in _FIELDS.items():
        n = len(field.path)
        if name in given and path[:n] == field.path and len(_resolve(given, field.path)) < n:
            return (name, *_resolve(given[name], path[n:]))
    return _resolve(given, path)


def _resolve(given: Any, path: tuple[str, ...]) -> tuple[str, ...]:
    """The part of a path that exists."""
    for n, name in enumerate(path):
        if not isinstance(given, Mapping) or name not in given:
            return path[:n]
        given = given[name]
    return path


def _put(values: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    """Set a value, unless the path has one already or runs through something that is no object."""
    *parents, name = path
    for parent in parents:
        inner = values.get(parent, {})
        if not isinstance(inner, Mapping):
            return
        values[parent] = inner = dict(inner)
        values = inner
    values.setdefault(name, value)


def to_old(event: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """A server event under the beta names. `added` and `done` of an item were one event then: `created`."""
    kind = event["type"]
    if kind == "conversation.item.done":
        return
    values = {**event, "type": _EVENTS.get(kind, kind)}
    for name, translate in _OLD_OBJECTS.items():
        if name in values:
            values[name] = translate(values[name])
    yield values


def _old_part(part: Mapping[str, Any]) -> dict[str, Any]:
    return {**part, "type": _PARTS.get(part["type"], part["type"])}


def _old_item(item: Mapping[str, Any]) -> dict[str, Any]:
    return {**item, "content": [_old_part(part) for part in item.get("content") or []]}


def _old_response(response: Mapping[str, Any]) -> dict[str, Any]:
    values = _old_fields({**response, "audio": {"output": {}, **(response.get("audio") or {})}})
    values["output"] = [_old_item(item) for item in values.get("output", [])]
    values["max_output_tokens"] = values.pop("max_response_output_tokens", "inf")  # responses had this name
    return values


def _old_session(session: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in _old_fields(session).items() if name != "type"}


_OLD_OBJECTS: dict[str, Callable[[Any], dict[str, Any]]] = {
    "item": _old_item,
    "part": _old_part,
    "response": _old_response,
    "session": _old_session,
}


def _old_fields(values: Mapping[str, Any]) -> dict[str, Any]:
    old = {name: value for name, value in values.items() if name != "audio"}
    for name, field in _FIELDS.items():
        if _resolve(values, field.path) != field.path:
            continue
        value: Any = values
        for part in field.path:
            value = value[part]
        old.pop(field.path[0], None)
        old[name] = field.to_old(value)
    return old
