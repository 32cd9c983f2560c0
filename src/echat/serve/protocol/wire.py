"""Base of all protocol models, ids, and protocol errors."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

ErrorType = Literal["invalid_request_error", "server_error"]


class Wire(BaseModel):
    """Part of a message. Unknown fields are kept and never refused; the types of known fields are strict (no
    text for a number, no number for a boolean)."""

    model_config = ConfigDict(extra="allow", strict=True, protected_namespaces=())

    def dump(self) -> dict[str, Any]:
        """JSON values without None."""
        return self.model_dump(mode="json", exclude_none=True)


class ProtocolError(ValueError):
    """An error of the client that is answered with an `error` event; the connection stays open."""

    def __init__(
        self, message: str, code: str = "invalid_value", param: str | None = None, event_id: str | None = None
    ) -> None:
        super().__init__(message)
        self.code, self.param, self.event_id = code, param, event_id


def new_id(prefix: str) -> str:
    """A random id such as `item_0f3a...`."""
    return f"{prefix}_{secrets.token_hex(10)}"


def to_protocol_error(error: ValidationError, values: Any) -> ProtocolError:
    """The first validation error, with its path in `values` as `param`. The input is not repeated: it may be
    audio."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    param = ".".join(str(part) for part in _path(first["loc"], values, first["type"] == "missing")) or None
    message = first["msg"].removeprefix("Value error, ")
    return ProtocolError(f"{param}: {message}" if param else message, "invalid_value", param)


def _path(loc: tuple[int | str, ...], values: Any, is_missing: bool) -> list[int | str]:
    """The keys of `loc` without the names of union members that pydantic adds."""
    path: list[int | str] = []
    for part in loc:
        is_index = isinstance(values, list) and isinstance(part, int) and part < len(values)
        if is_index or (isinstance(values, Mapping) and part in values):
            values = values[part]
        elif not (is_missing and part == loc[-1]):
            continue
        path.append(part)
    return path
