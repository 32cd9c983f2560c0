"""The server: all doors of one engine, as an ASGI application."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Response, WebSocket

from echat import __version__
from echat.audio.vad import VoiceActivity
from echat.serve.completions import add_completions
from echat.serve.door import Door
from echat.serve.gate import Gate
from echat.serve.heap import tidy
from echat.serve.http_errors import BoundedRoute, Places, add_handlers
from echat.serve.keys import Keys
from echat.serve.metrics import Metrics
from echat.serve.realtime import Sessions, talk
from echat.serve.recorder import check_folder
from echat.serve.reference import add_reference
from echat.serve.replies import Desk
from echat.serve.rest import add_rest
from echat.serve.settings import ServeConfig
from echat.serve.state import House
from echat.serve.turn_detector import turn_detector
from echat.serve.web_page import add_page

if TYPE_CHECKING:
    from echat.infer.engine import Engine

log = logging.getLogger("echat.serve")


def make_app(engine: Engine, config: ServeConfig, door: Door | None = None) -> FastAPI:
    """Everything that is served, ready for uvicorn. `door` counts its connections."""
    if config.recording is not None:
        check_folder(config.recording)
    metrics, keys, limits = Metrics(), Keys(config.keys), config.limits
    door = door or Door(limits.connections, limits.connections_per_address)
    desk = Desk(engine, threads=2 * limits.sessions + limits.requests + 2, asides=limits.asides)
    detector = turn_detector(config.turn_detector) if config.turn_detector else None
    house = House(desk, config, VoiceActivity(), metrics, detector)
    sessions, places = Sessions(house), Places(house)

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        tidying = asyncio.create_task(tidy())
        yield
        tidying.cancel()
        desk.close()

    app = FastAPI(title="echat", version=__version__, docs_url=None, redoc_url=None, lifespan=life)
    app.router.route_class = BoundedRoute
    app.state.sessions, app.state.keys, app.state.metrics = sessions, keys, metrics
    app.state.house, app.state.limits = house, limits
    add_handlers(app)

    @app.websocket("/v1/realtime")
    async def realtime(socket: WebSocket) -> None:
        await talk(socket, sessions, keys.session_of(socket.scope.get("echat.key")))

    @app.get("/healthz")
    @app.get("/health", include_in_schema=False)
    async def health() -> dict[str, Any]:
        return {"status": "leaving" if sessions.leaving.is_set() else "ok", "sessions": len(sessions.open)}

    @app.get("/metrics")
    async def numbers() -> Response:
        return Response(metrics.text(), media_type="text/plain; version=0.0.4")

    add_rest(app, house, keys, places)
    add_completions(app, house, places)
    add_page(app, house, keys)
    add_reference(app)
    app.add_middleware(Gate, config=config, keys=keys, metrics=metrics, door=door)
    return app
