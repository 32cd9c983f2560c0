"""HTTP request bodies: read whole before they are handled, limited in size each and all together; multipart
forms."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, TypeVar, get_origin

from fastapi import Request
from pydantic import BaseModel, ValidationError
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.types import Message, Receive

from echat.serve.http.errors import APIError
from echat.serve.protocol.wire import ProtocolError
from echat.serve.settings import Limits, MiB

LARGEST_AT_ONCE = 8  # bodies of the largest size that all requests together may hold in RAM
MAX_DRAINED_BYTES = 128 * MiB  # of a rejected body
DRAIN_SECONDS = 2.0  # longest wait for the next part of it


class RequestBodies:
    """The bodies of all requests that are being read or handled."""

    def __init__(self, limits: Limits) -> None:
        self.most = limits.upload_bytes
        self.n_bytes = 0

    @asynccontextmanager
    async def read(self, headers: dict[str, str], receive: Receive) -> AsyncIterator[Receive]:
        """Read a body. Yields a `receive` for the application that returns it in one piece; raises ClientLeft
        where the connection ends first."""
        length = headers.get("content-length", "0")
        if not (length.isascii() and length.isdigit()) or int(length[:20]) > self.most:
            raise self._too_large()
        pieces, size = [], 0
        try:
            async for piece in body_chunks(receive):
                pieces.append(piece)
                size += len(piece)
                self.n_bytes += len(piece)
                if size > self.most:
                    raise self._too_large()
                if self.n_bytes > LARGEST_AT_ONCE * self.most:
                    raise APIError(503, "too many bodies at once; try again", "server_busy", retry_after=5)
            yield _replay(pieces, receive)
        finally:
            self.n_bytes -= size

    def _too_large(self) -> APIError:
        message = f"expected a body of at most {self.most} bytes (limits.upload_bytes), found more; send less"
        return APIError(413, message, "request_too_large")


class ClientLeft(Exception):
    """The connection ended before the body did."""


async def body_chunks(receive: Receive) -> AsyncIterator[bytes]:
    """The pieces of a body as they arrive."""
    while True:
        message = await receive()
        if message["type"] != "http.request":
            raise ClientLeft
        yield message.get("body", b"")
        if not message.get("more_body", False):
            return


def _replay(pieces: list[bytes], receive: Receive) -> Receive:
    async def receive_body() -> Message:
        if not pieces:
            return await receive()
        body = b"".join(pieces)
        pieces.clear()
        return {"type": "http.request", "body": body, "more_body": False}

    return receive_body


async def drain(headers: dict[str, str], receive: Receive) -> None:
    """Read and discard a limited part of a rejected body. If the connection were closed while its client
    still sends, it would be reset and the client could not read the error response."""
    if "transfer-encoding" not in headers and headers.get("content-length", "0") == "0":
        return
    left = MAX_DRAINED_BYTES
    pieces = body_chunks(receive)
    try:
        while left > 0:
            left -= len(await asyncio.wait_for(anext(pieces), DRAIN_SECONDS))
    except (TimeoutError, StopAsyncIteration, ClientLeft):
        return


# --- multipart forms with a file, kept in RAM: a user's speech is never written to disk

Fields = TypeVar("Fields", bound=BaseModel)

MAX_FIELDS = 50
FILE = "file"  # name of the field


class _InMemory(MultiPartParser):
    """Starlette's parser without its temporary files for what is larger than a megabyte (0: never)."""

    spool_max_size = 0


async def read_form(request: Request, fields: type[Fields], limits: Limits) -> tuple[Fields, bytes]:
    """The fields of a form and the bytes of its file; a wrong field is refused by name."""
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        raise _refusal(FILE, "expected a form (multipart/form-data) with a file, found another body")
    parser = _InMemory(
        request.headers,
        _once(await request.body()),
        max_files=1,
        max_fields=MAX_FIELDS,
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
    """The form's description for OpenAPI."""
    schema = fields.model_json_schema()
    file = {"type": "string", "format": "binary"}
    properties = {FILE: file, **schema["properties"]}
    described = {**schema, "properties": properties, "required": [FILE]}
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": described}}}}


def _refusal(param: str, message: str) -> ProtocolError:
    return ProtocolError(f"{param}: {message}", "invalid_value", param)


async def _once(body: bytes) -> AsyncGenerator[bytes, None]:
    yield body
