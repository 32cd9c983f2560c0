"""What all messages share: a base of their models, ids, and the errors a client is told."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

ErrorType = Literal["invalid_request_error", "server_error"]


class Wire(BaseModel):
    """Part of a message. Fields that this server does not know are kept, never a reason to refuse; of those
    it knows, the type must be right: no text for a number, no number for yes or no."""

    model_config = ConfigDict(extra="allow", strict=True, protected_namespaces=())

    def dump(self) -> dict[str, Any]:
        """As JSON values; what is None is left out."""
        return self.model_dump(mode="json", exclude_none=True)


class ProtocolError(ValueError):
    """Something a client did that is answered with an `error` event; the connection stays open."""

    def __init__(
        self, message: str, code: str = "invalid_value", param: str | None = None, event_id: str | None = None
    ) -> None:
        super().__init__(message)
        self.code, self.param, self.event_id = code, param, event_id


def new_id(prefix: str) -> str:
    """An id that nobody guesses, such as `item_0f3a...`."""
    return f"{prefix}_{secrets.token_hex(10)}"


def to_protocol_error(error: ValidationError, values: Any) -> ProtocolError:
    """The first thing in `values` that does not fit, with its place as `param`. What was sent is not
    repeated: it may be sound."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    param = ".".join(str(part) for part in _path(first["loc"], values, first["type"] == "missing")) or None
    message = first["msg"].removeprefix("Value error, ")
    return ProtocolError(f"{param}: {message}" if param else message, "invalid_value", param)


def _path(loc: tuple[int | str, ...], values: Any, is_missing: bool) -> list[int | str]:
    """The keys of `loc` without the names of union members that pydantic mixes in."""
    path: list[int | str] = []
    for part in loc:
        is_index = isinstance(values, list) and isinstance(part, int) and part < len(values)
        if is_index or (isinstance(values, Mapping) and part in values):
            values = values[part]
        elif not (is_missing and part == loc[-1]):
            continue
        path.append(part)
    return path
