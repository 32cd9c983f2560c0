"""JSON of untrusted clients: parsed values are finite, not too deep and valid text; output is valid UTF-8.
`size_limits` checks the size before."""

from __future__ import annotations

import json
import math
from typing import Any

from pydantic import BaseModel, model_validator

from echat.serve.protocol.wire import ProtocolError

MAX_DEPTH = 64  # of objects and lists within one another; schemas of tools reach about 20


def read_json(text: str) -> dict[str, Any]:
    """Parse the JSON object of a text frame."""
    try:
        values = json.loads(text, parse_float=_number, parse_constant=_constant)
    except RecursionError as error:
        raise _too_deep() from error
    except ProtocolError:
        raise
    except ValueError as error:
        raise _refused("expected one JSON object in a text frame, found text that is no JSON") from error
    if not isinstance(values, dict):
        raise _refused(f"expected a JSON object, found {type(values).__name__}")
    return {valid_text(name): sanitize(value, MAX_DEPTH - 1) for name, value in values.items()}


def write_json(values: Any) -> str:
    """A value as JSON that encodes to UTF-8, also with lone surrogates in its text."""
    return valid_text(json.dumps(values, ensure_ascii=False))


def valid_text(text: str) -> str:
    """Text with lone surrogates replaced by U+FFFD."""
    if text.isascii():
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def sanitize(value: Any, room: int = MAX_DEPTH) -> Any:
    """A JSON value that is safe to handle: valid text, finite numbers, and a depth that can be copied
    recursively."""
    if isinstance(value, str):
        return valid_text(value)
    if isinstance(value, float) and not math.isfinite(value):
        raise _refused(f"expected finite numbers, found {value}")
    if not isinstance(value, (dict, list)):
        return value
    if room == 0:
        raise _too_deep()
    if isinstance(value, list):
        return [sanitize(child, room - 1) for child in value]
    return {valid_text(name): sanitize(child, room - 1) for name, child in value.items()}


class Body(BaseModel):
    """Base of HTTP request models: sanitized like a WebSocket message."""

    @model_validator(mode="before")
    @classmethod
    def _is_safe(cls, values: Any) -> Any:
        return sanitize(values)


def _number(text: str) -> float | int:
    """JSON has one kind of number: 500.0 is the integer 500."""
    value = float(text)
    return int(value) if value.is_integer() and abs(value) < 2**53 else value


def _constant(name: str) -> float:
    raise _refused(f"expected finite numbers, found {name}")


def _too_deep() -> ProtocolError:
    return _refused(f"expected JSON nested at most {MAX_DEPTH} deep, found deeper; flatten it")


def _refused(message: str) -> ProtocolError:
    return ProtocolError(message, "invalid_json")
