"""What browsers must be told so that pages of allowed origins can use the REST endpoints (CORS)."""

from __future__ import annotations

from collections.abc import Collection

METHODS = "GET, POST, OPTIONS"
USUAL_HEADERS = "authorization, content-type"
PREFLIGHT_SECONDS = 600  # for which a browser need not ask again


def is_preflight(method: str, headers: dict[str, str]) -> bool:
    """Does a browser ask whether its page may ask?"""
    return method == "OPTIONS" and "origin" in headers and "access-control-request-method" in headers


def allowing(origin: str | None, allowed: Collection[str]) -> dict[str, str]:
    """Headers of every answer: the page of an allowed origin may read it, other origins may not."""
    if not allowed:
        return {"cross-origin-resource-policy": "same-origin"}
    if origin not in allowed or origin is None:
        return {"cross-origin-resource-policy": "same-origin", "vary": "origin"}
    return {
        "access-control-allow-origin": origin,
        "access-control-expose-headers": "retry-after",
        "cross-origin-resource-policy": "cross-origin",
        "vary": "origin",
    }


def preflight(headers: dict[str, str]) -> list[tuple[bytes, bytes]]:
    """Headers of the answer to a preflight request. Keys travel in a header that the page sets itself, so any
    header may be sent."""
    wanted = headers.get("access-control-request-headers", "")
    names = [name.strip() for name in wanted.split(",")]
    listed = ", ".join(name for name in names if name.replace("-", "").isalnum() and name.isascii())
    values = {
        "access-control-allow-methods": METHODS,
        "access-control-allow-headers": listed or USUAL_HEADERS,
        "access-control-max-age": str(PREFLIGHT_SECONDS),
    }
    return [(name.encode(), value.encode()) for name, value in values.items()]
