"""Sound files inside a request: base64, alone or as a data URI. Nothing is fetched from elsewhere."""

from __future__ import annotations

import re
from urllib.parse import unquote_to_bytes

from echat.serve.editing import decoded
from echat.serve.http_errors import APIError

_DATA_URI = re.compile(r"data:(?P<type>[^,]*?)(?P<base64>;base64)?,", re.IGNORECASE)
_REMOTE = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)


def inline_bytes(text: str, where: str) -> bytes:
    """The bytes of base64 or of a data URI; a remote address is refused by name."""
    text = text.strip()
    if _REMOTE.match(text):
        raise APIError(
            400,
            f"{where}: expected base64 or a data URI, found the remote address {text[:60]!r}, which is not "
            "fetched; send the sound itself",
            "invalid_value",
            where,
        )
    uri = _DATA_URI.match(text)
    if uri is not None and not uri["base64"]:
        return unquote_to_bytes(text[uri.end() :])
    encoded = text if uri is None else unquote_to_bytes(text[uri.end() :]).decode("ascii", "replace")
    return decoded("".join(encoded.split()), where)
