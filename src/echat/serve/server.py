"""The server: all endpoints over one engine as an ASGI application, and uvicorn to run it."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Response, WebSocket

from echat import __version__
from echat.audio.vad import VoiceActivityDetector
from echat.config import apply_override, read_yaml, validate
from echat.serve.app_state import App
from echat.serve.async_engine import AsyncEngine
from echat.serve.connection_limiter import (
    ACCEPTS_AT_ONCE,
    ConnectionLimiter,
    ListeningSocket,
    allowed_connections,
    listen,
)
from echat.serve.http.audio import add_audio
from echat.serve.http.chat_completions import add_completions
from echat.serve.http.errors import BoundedRoute, add_exception_handlers
from echat.serve.http.middleware import AccessMiddleware, was_refused
from echat.serve.http.models import add_models
from echat.serve.http.request_slots import RequestSlots
from echat.serve.http.web_page import add_page, add_reference
from echat.serve.keys import Keys
from echat.serve.memory_release import release_memory
from echat.serve.metrics import Metrics
from echat.serve.realtime.recorder import check_folder
from echat.serve.realtime.turn_detection import load_turn_detector
from echat.serve.realtime.websocket import SessionRegistry, serve_websocket
from echat.serve.settings import SWITCH_SECONDS, ServeConfig

if TYPE_CHECKING:
    from socket import socket
    from types import FrameType

    import uvicorn

    from echat.infer.engine import Engine


log = logging.getLogger("echat.serve")


def make_app(engine: Engine, config: ServeConfig, connection_limiter: ConnectionLimiter) -> FastAPI:
    """The ASGI application with all endpoints. `connection_limiter` counts its connections."""
    if config.recording is not None:
        check_folder(config.recording)
    metrics, keys, limits = Metrics(), Keys(config.keys), config.limits
    async_engine = AsyncEngine(
        engine, threads=2 * limits.sessions + limits.requests + 2, asides=limits.asides
    )
    detector = load_turn_detector(config.turn_detector) if config.turn_detector else None
    app = App(async_engine, config, VoiceActivityDetector(), metrics, detector)
    sessions, slots = SessionRegistry(app), RequestSlots(app)

    @asynccontextmanager
    async def lifespan(api: FastAPI) -> AsyncIterator[None]:
        releasing = asyncio.create_task(release_memory())
        yield
        releasing.cancel()
        async_engine.close()

    api = FastAPI(title="echat", version=__version__, docs_url=None, redoc_url=None, lifespan=lifespan)
    api.router.route_class = BoundedRoute
    api.state.sessions, api.state.keys, api.state.metrics = sessions, keys, metrics
    api.state.app, api.state.limits = app, limits
    add_exception_handlers(api)

    @api.websocket("/v1/realtime")
    async def realtime(socket: WebSocket) -> None:
        await serve_websocket(socket, sessions, keys.session_of(socket.scope.get("echat.key")))

    @api.get("/healthz")
    @api.get("/health", include_in_schema=False)
    async def health() -> dict[str, Any]:
        return {
            "status": "leaving" if sessions.shutting_down.is_set() else "ok",
            "sessions": len(sessions.open),
        }

    @api.get("/metrics")
    async def numbers() -> Response:
        return Response(metrics.text(), media_type="text/plain; version=0.0.4")

    add_models(api, app, keys)
    add_audio(api, app, slots)
    add_completions(api, app, slots)
    add_page(api, app, keys)
    add_reference(api)
    api.add_middleware(
        AccessMiddleware, config=config, keys=keys, metrics=metrics, connection_limiter=connection_limiter
    )
    return api


# --- running a server: settings from a file and the command line, then uvicorn until a signal

STARTUP_FAILURE = 3


def load_config(path: Path | None, overrides: Sequence[str] = ()) -> ServeConfig:
    """The settings of a file, with overrides."""
    values: dict[str, Any] = read_yaml(path) if path is not None else {}
    for override in overrides:
        apply_override(values, override)
    config = validate(ServeConfig, values, str(path or "echat serve"))
    if config.keys is not None and not config.keys.is_file():
        raise ValueError(
            f"--keys: expected a file of API keys at {config.keys}, found none; make one with "
            f"echat keys add --keys {config.keys}"
        )
    return config


def _is_unexpected(record: logging.LogRecord) -> bool:
    """Log filter: uvicorn reports a handshake that was refused with status and body as an incomplete one."""
    return not (was_refused.get() and "without completing handshake" in record.getMessage())


def make_server(
    engine: Engine,
    config: ServeConfig,
    bound: list[ListeningSocket] | None = None,
    on_start: Callable[[], None] = lambda: None,
) -> uvicorn.Server:
    """A uvicorn server with graceful shutdown of sessions. `bound` are its listening sockets; None: it binds
    them at the start. `on_start` is called when it accepts connections."""
    import uvicorn

    limits = config.limits
    connection_limiter = ConnectionLimiter(
        allowed_connections(limits.connections), limits.connections_per_address
    )
    api = make_app(engine, config, connection_limiter)
    logging.getLogger("uvicorn.error").addFilter(_is_unexpected)

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket] | None = None) -> None:
            """Serve at sockets that count their connections."""
            await self.lifespan.startup()
            if self.lifespan.should_exit:
                sys.exit(STARTUP_FAILURE)
            loop = asyncio.get_running_loop()
            self.servers = []
            for one in listen(config.host, config.port) if bound is None else bound:
                one.connection_limiter = connection_limiter
                options: dict[str, Any] = {"sock": one, "backlog": ACCEPTS_AT_ONCE}
                if self.config.ssl is not None:
                    options |= {"ssl": self.config.ssl, "ssl_handshake_timeout": limits.header_seconds}
                self.servers.append(await loop.create_server(self._connection, **options))
            self.started = True
            on_start()

        def _connection(self) -> asyncio.Protocol:
            return self.config.http_protocol_class(  # type: ignore[call-arg]
                config=self.config, server_state=self.server_state, app_state=self.lifespan.state
            )

        async def shutdown(self, sockets: list[socket] | None = None) -> None:
            await api.state.sessions.shut_down()
            await super().shutdown()

        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            """After SIGTERM the process ends with status 0, not by the signal."""
            if sig == signal.SIGTERM:
                self.should_exit = True
            else:
                super().handle_exit(sig, frame)

    return Server(_uvicorn_config(api, connection_limiter, config))


def _uvicorn_config(api: Any, connection_limiter: ConnectionLimiter, config: ServeConfig) -> uvicorn.Config:
    import uvicorn

    from echat.serve.uvicorn_protocols import make_http_protocol, make_websocket_protocol

    return uvicorn.Config(
        api,
        http=make_http_protocol(connection_limiter, config.limits),
        ws=make_websocket_protocol(),
        ssl_certfile=config.tls_certificate,
        ssl_keyfile=config.tls_key,
        ws_max_size=config.limits.message_bytes,
        timeout_graceful_shutdown=int(config.limits.shutdown_seconds) + 5,
        loop="asyncio",  # other loops bypass ListeningSocket.accept
        ws_per_message_deflate=False,  # base64 of audio barely compresses
        ws_ping_interval=20.0,
        ws_ping_timeout=20.0,
        timeout_keep_alive=10,
        server_header=False,
        access_log=False,  # addresses of users are private
        log_config=None,
        proxy_headers=False,
    )


def run(engine: Engine, config: ServeConfig, sockets: list[ListeningSocket]) -> None:
    """Serve at sockets of `listen` until a signal."""
    logging.basicConfig(
        stream=sys.stderr, level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s"
    )
    logging.getLogger("echat.serve").setLevel(logging.INFO)
    sys.setswitchinterval(SWITCH_SECONDS)
    line = f"echat serves at {address_of(config, sockets[0])} (Ctrl-C stops it)"
    make_server(engine, config, sockets, lambda: print(line, file=sys.stderr, flush=True)).run()


def address_of(config: ServeConfig, one: ListeningSocket) -> str:
    """URL of the server."""
    scheme = "https" if config.tls_certificate else "http"
    where = f"[{config.host}]" if ":" in config.host else config.host
    return f"{scheme}://{where}:{one.getsockname()[1]}/"
