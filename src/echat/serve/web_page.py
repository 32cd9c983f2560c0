"""The page at /: files that need no build step, and what they must know of the server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastapi import FastAPI
from starlette.responses import FileResponse
from starlette.staticfiles import StaticFiles

from echat.dialogue.labels import REPLY_EMOTIONS_IN_ENGLISH
from echat.serve.keys import Keys
from echat.serve.state import House

FOLDER = Path(__file__).parent / "page"


def add_page(app: FastAPI, house: House, keys: Keys) -> None:
    """index.html at /, the other files under /page/. Nothing of it is secret: no key is asked for."""

    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(FOLDER / "index.html")

    @app.get("/page/about.json", include_in_schema=False)
    async def about() -> dict[str, Any]:
        return about_server(house, keys)

    app.mount("/page", StaticFiles(directory=FOLDER))


def voice_names(house: House) -> list[str]:
    """The voices of the model; the first one is the server's own choice."""
    token2wav = house.desk.engine.token2wav
    voices = list(token2wav.voices) if token2wav else []
    return sorted(voices, key=lambda name: name != house.config.voice)


def about_server(house: House, keys: Keys) -> dict[str, Any]:
    """What the page offers to choose from."""
    return {
        "model": house.model,
        "voices": voice_names(house),
        "think": house.config.think,
        "needs_key": keys.are_asked_for,
        "reply_emotions": REPLY_EMOTIONS_IN_ENGLISH,
    }
