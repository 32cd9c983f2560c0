"""Forms with a file in them, kept in memory: what a user says is never written to disk.

A body is read whole before its form is taken apart, so its size is bounded already (`bodies`).
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any, TypeVar, get_origin

from fastapi import Request
from pydantic import BaseModel, ValidationError
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from echat.serve.protocol.wire import ProtocolError
from echat.serve.settings import Limits

Fields = TypeVar("Fields", bound=BaseModel)

MOST_FIELDS = 50
FILE = "file"  # the field that holds it


class _InMemory(MultiPartParser):
    """Starlette's parser moves files above a megabyte to a temporary file; 0 is never."""

    spool_max_size = 0


async def read_form(request: Request, fields: type[Fields], limits: Limits) -> tuple[Fields, bytes]:
    """The fields of a form and the bytes of its file; what does not fit is refused by name."""
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        raise _refusal(FILE, "expected a form (multipart/form-data) with a file, found another body")
    parser = _InMemory(
        request.headers,
        _once(await request.body()),
        max_files=1,
        max_fields=MOST_FIELDS,
        max_part_size=limits.fields_bytes,
    )
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise _refusal(FILE, f"expected a form with one file ({error.message.rstrip('.')})") from error
    file = form.get(FILE)
    if not isinstance(file, UploadFile):
        raise _refusal(FILE, "expected a sound file, found none")
    given = {}
    for name, field in fields.model_fields.items():
        values = [value for value in form.getlist(field.alias or name) if value != ""]
        if values:
            given[field.alias or name] = values if get_origin(field.annotation) is list else values[-1]
    try:
        return fields.model_validate(given), await file.read()
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        raise _refusal(str(first["loc"][0]), first["msg"]) from error
    finally:
        await form.close()


def form_schema(fields: type[BaseModel]) -> dict[str, Any]:
    """How such a form is described in OpenAPI."""
    schema = fields.model_json_schema()
    file = {"type": "string", "format": "binary"}
    properties = {FILE: file, **schema["properties"]}
    described = {**schema, "properties": properties, "required": [FILE]}
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": described}}}}


def _refusal(param: str, message: str) -> ProtocolError:
    return ProtocolError(f"{param}: {message}", "invalid_value", param)


async def _once(body: bytes) -> AsyncGenerator[bytes, None]:
    yield body
