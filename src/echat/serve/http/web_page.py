"""The web page at `/`: static files without a build step, and the server facts that they fetch."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from starlette.responses import FileResponse, HTMLResponse
from starlette.staticfiles import StaticFiles

from echat.dialogue.labels import REPLY_EMOTIONS_IN_ENGLISH
from echat.serve.app_state import App
from echat.serve.keys import Keys

FOLDER = Path(__file__).parents[1] / "page"


def add_page(api: FastAPI, app: App, keys: Keys) -> None:
    """Serve index.html at /, the other files under /page/. They need no key, as nothing in them is secret."""

    @api.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(FOLDER / "index.html")

    @api.get("/page/about.json", include_in_schema=False)
    async def about() -> dict[str, Any]:
        return {
            "model": app.model,
            "voices": app.voices,
            "think": app.config.think,
            "needs_key": keys.are_required,
            "reply_emotions": REPLY_EMOTIONS_IN_ENGLISH,
        }

    api.mount("/page", StaticFiles(directory=FOLDER))


# --- `/docs`: reference of the REST endpoints, one plain page without script, rendered from `/openapi.json`

HEAD = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>echat: REST reference</title><link rel="stylesheet" href="/page/reference.css"></head><body><main>
<h1>REST reference</h1>
<p>The same for programs: <a href="/openapi.json">openapi.json</a>. Not in it:
<code>GET /v1/realtime</code>, a WebSocket that speaks the OpenAI Realtime protocol. Where the server asks for
keys, send <code>Authorization: Bearer KEY</code>.</p>
"""


def add_reference(api: FastAPI) -> None:
    """Add the route; endpoints that are added to `api` later appear on the page as well."""

    @api.get("/docs", include_in_schema=False)
    async def reference() -> HTMLResponse:
        return HTMLResponse(render_reference(api.openapi()))


def render_reference(schema: dict[str, Any]) -> str:
    """The page for an OpenAPI schema."""
    models = schema.get("components", {}).get("schemas", {})
    parts = [
        part
        for path, methods in schema["paths"].items()
        for method, operation in methods.items()
        for part in _operation(f"{method.upper()} {path}", operation, models)
    ]
    return HEAD + "\n".join(parts) + "\n</main></body></html>\n"


def _operation(title: str, operation: dict[str, Any], models: dict[str, Any]) -> Iterator[str]:
    yield f"<h2><code>{escape(title)}</code></h2>"
    if text := operation.get("description") or operation.get("summary"):
        yield f"<p>{escape(text)}</p>"
    for kind, content in operation.get("requestBody", {}).get("content", {}).items():
        model = _resolved(content.get("schema", {}), models)
        yield f"<p>Body: <code>{escape(kind)}</code></p>"
        yield from _fields(model)


def _fields(model: dict[str, Any]) -> Iterator[str]:
    needed = model.get("required", [])
    yield "<table><thead><tr><th>field</th><th>type</th><th>default</th></tr></thead><tbody>"
    for name, field in model.get("properties", {}).items():
        default = "required" if name in needed else repr(field["default"]) if "default" in field else ""
        cells = (name, _type(field), default)
        yield "<tr>" + "".join(f"<td><code>{escape(cell)}</code></td>" for cell in cells) + "</tr>"
    yield "</tbody></table>"


def _type(field: dict[str, Any]) -> str:
    if "$ref" in field:
        return str(field["$ref"].rpartition("/")[2])
    if "enum" in field or "const" in field:
        return " | ".join(str(one) for one in field.get("enum", [field.get("const")]))
    if "anyOf" in field:
        return " | ".join(_type(one) for one in field["anyOf"])
    if field.get("type") == "array":
        return f"list of {_type(field.get('items', {}))}"
    return str(field.get("type", "any"))


def _resolved(schema: dict[str, Any], models: dict[str, Any]) -> dict[str, Any]:
    name = schema.get("$ref", "").rpartition("/")[2]
    return models[name] if name else schema
