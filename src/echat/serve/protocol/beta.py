"""The older shape of the protocol. Its fields are understood from every client, by one table; events go out
under its names only to clients that ask for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
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
_FORMATS = {"audio/pcm": "pcm16", "audio/pcmu": "g711_ulaw", "audio/pcma": "g711_alaw"}
_NEW_FORMATS = {old: new for new, old in _FORMATS.items()}

_PATHS: dict[str, tuple[str, ...]] = {
    "modalities": ("output_modalities",),
    "max_response_output_tokens": ("max_output_tokens",),
    "input_audio_format": ("audio", "input", "format"),
    "input_audio_noise_reduction": ("audio", "input", "noise_reduction"),
    "input_audio_transcription": ("audio", "input", "transcription"),
    "turn_detection": ("audio", "input", "turn_detection"),
    "output_audio_format": ("audio", "output", "format"),
    "speed": ("audio", "output", "speed"),
    "voice": ("audio", "output", "voice"),
}  # old field of a session or a response -> where it stands now


def to_new(event: Mapping[str, Any]) -> dict[str, Any]:
    """A client event under the present names; a `session` is translated where it is merged."""
    values = dict(event)
    if values.get("type") == "transcription_session.update" and isinstance(values.get("session"), Mapping):
        values |= {"type": "session.update", "session": {**values["session"], "type": "transcription"}}
    if isinstance(values.get("response"), Mapping):
        values["response"] = new_fields(values["response"])
    return values


def new_fields(given: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a session or a response in their present places; where both are given, the present one
    counts."""
    values = {name: value for name, value in given.items() if name not in _PATHS}
    for name, path in _PATHS.items():
        if name in given:
            _put(values, path, _VALUES.get(name, _same)(given[name]))
    return values


def given_path(given: Mapping[str, Any], path: tuple[str, ...]) -> tuple[str, ...]:
    """Where the client wrote what `new_fields` put at `place`, as far as it wrote it."""
    for name, new in _PATHS.items():
        if name in given and path[: len(new)] == new and len(_resolve(given, new)) < len(new):
            return (name, *_resolve(given[name], path[len(new) :]))
    return _resolve(given, path)


def _resolve(given: Any, path: tuple[str, ...]) -> tuple[str, ...]:
    """As much of a place as there is."""
    found: tuple[str, ...] = ()
    for name in path:
        if not isinstance(given, Mapping) or name not in given:
            break
        given, found = given[name], (*found, name)
    return found


def _put(values: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    """Set a value, unless there is one, or something else stands in its way."""
    *parents, name = path
    for parent in parents:
        inner = values.get(parent, {})
        if not isinstance(inner, Mapping):
            return
        values[parent] = inner = dict(inner)
        values = inner
    values.setdefault(name, value)


def _same(value: Any) -> Any:
    return value


def _new_modalities(value: Any) -> Any:
    """Speech came with its text."""
    return ["audio"] if isinstance(value, list) and sorted(map(str, value)) == ["audio", "text"] else value


def _new_format(value: Any) -> Any:
    return {"type": _NEW_FORMATS.get(value, value)} if isinstance(value, str) else value


def _new_detection(value: Any) -> Any:
    return None if isinstance(value, Mapping) and value.get("type") == "none" else value


_VALUES: dict[str, Callable[[Any], Any]] = {
    "modalities": _new_modalities,
    "input_audio_format": _new_format,
    "output_audio_format": _new_format,
    "turn_detection": _new_detection,
}


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


def _old_part(part: Mapping[str, Any]) -> dict[str, Any]:
    return {**part, "type": _PARTS.get(part["type"], part["type"])}


def _old_item(item: Mapping[str, Any]) -> dict[str, Any]:
    return {**item, "content": [_old_part(part) for part in item.get("content") or []]}


def _old_response(response: Mapping[str, Any]) -> dict[str, Any]:
    values = _old_fields({**response, "audio": {"output": {}, **(response.get("audio") or {})}})
    values["output"] = [_old_item(item) for item in values.get("output", [])]
    values["max_output_tokens"] = values.pop("max_response_output_tokens", "inf")  # its name even then
    return values


def _old_session(session: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in _old_fields(session).items() if name != "type"}


def _old_fields(values: Mapping[str, Any]) -> dict[str, Any]:
    """The table read from right to left."""
    old = {name: value for name, value in values.items() if name != "audio"}
    for name, path in _PATHS.items():
        if _resolve(values, path) != path:
            continue
        value: Any = values
        for part in path:
            value = value[part]
        old.pop(path[0], None)
        old[name] = _OLD_VALUES.get(name, _same)(value)
    return old


def _old_modalities(modalities: list[str]) -> list[str]:
    return ["text", "audio"] if "audio" in modalities else ["text"]


def _old_format(form: Mapping[str, Any]) -> str:
    return _FORMATS[form["type"]]


_OLD_VALUES: dict[str, Callable[[Any], Any]] = {
    "modalities": _old_modalities,
    "input_audio_format": _old_format,
    "output_audio_format": _old_format,
}
