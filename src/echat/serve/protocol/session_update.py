"""Session update: a partial session object, in the present form or the beta dialect, merged deeply. Invalid
fields are left out and reported; the others take effect."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pydantic import ValidationError

from echat.config import merge
from echat.serve.protocol.beta import given_path, new_fields
from echat.serve.protocol.session import Session
from echat.serve.protocol.wire import ProtocolError, to_protocol_error

_SERVERS = ("id", "object", "model", "expires_at")  # read-only; clients may send them back
_NULLABLE = ("tracing", "include", "echat")
_DETECTION = ("threshold", "prefix_padding_ms", "silence_duration_ms", "eagerness")


def update(
    session: Session, changes: Mapping[str, Any], check: Callable[[Session], None] = lambda new: None
) -> tuple[Session, list[ProtocolError]]:
    """The session with changes merged in, and errors for the refused ones.

    `check` raises a ProtocolError, with the path within the session as `param`, for settings that the server
    cannot provide. A null where the protocol has none leaves the field as it is.
    """
    left = {name: value for name, value in changes.items() if name not in _SERVERS}
    refused: list[ProtocolError] = []
    while True:
        merged = merge(session.model_dump(mode="json"), _switched(session, new_fields(left)))
        try:
            new = Session.model_validate(merged)
            check(new)
            return new, refused
        except ValidationError as error:
            wrong = to_protocol_error(error, merged)
        except ProtocolError as error:
            wrong = error
        path = given_path(left, tuple((wrong.param or "").split(".")))
        if not path:
            raise wrong
        left, value = _without(left, path)
        if value is not None:
            refused.append(_named(wrong, path))


def _named(wrong: ProtocolError, path: tuple[str, ...]) -> ProtocolError:
    """The error under the field name that the client used."""
    where = ".".join(("session", *path))
    return ProtocolError(f"{where}: {str(wrong).removeprefix(f'{wrong.param}: ')}", wrong.code, where)


def _without(values: Mapping[str, Any], path: tuple[str, ...]) -> tuple[dict[str, Any], Any]:
    """A copy without the field at a path, and its value."""
    name, *rest = path
    left = dict(values)
    if not rest:
        return left, left.pop(name)
    left[name], value = _without(left[name], tuple(rest))
    return left, value


def _switched(session: Session, changes: Mapping[str, Any]) -> dict[str, Any]:
    """The changes, where a format or turn detection of another type resets the fields of the old type."""
    kept = {name: value for name, value in changes.items() if value is not None or name in _NULLABLE}
    audio = kept.get("audio")
    if not isinstance(audio, Mapping):
        return kept
    sides = {name: dict(side) if isinstance(side, Mapping) else side for name, side in audio.items()}
    for name, old in (("input", session.audio.input), ("output", session.audio.output)):
        side = sides.get(name)
        if not isinstance(side, dict):
            continue
        if isinstance(side.get("format"), Mapping) and side["format"].get("type") != old.format.type:
            side["format"] = {"rate": None, **side["format"]}
        detection = side.get("turn_detection")
        before = session.audio.input.turn_detection
        if isinstance(detection, Mapping) and before and detection.get("type", before.type) != before.type:
            side["turn_detection"] = {**dict.fromkeys(_DETECTION), **detection}
    return {**kept, "audio": sides}
