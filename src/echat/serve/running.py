"""Starting a server: settings from a file and the command line, then uvicorn until it is told to stop."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from echat.config import apply_override, read_yaml, validate
from echat.serve.door import IN_ONE_GO, Door, Listening, files_allow, listen
from echat.serve.settings import ServeConfig

if TYPE_CHECKING:
    from socket import socket
    from types import FrameType

    import uvicorn

    from echat.infer.engine import Engine

SWITCH_SECONDS = 0.001  # how long one Python thread may keep the others waiting; the default is 5 ms
STARTUP_FAILURE = 3
UVICORN: dict[str, Any] = dict(
    loop="asyncio",  # other loops accept connections without asking the socket
    ws_per_message_deflate=False,  # base64 of sound barely compresses
    ws_ping_interval=20.0,
    ws_ping_timeout=20.0,
    timeout_keep_alive=10,
    server_header=False,
    access_log=False,  # paths and addresses of users are nobody's business
    log_config=None,
    proxy_headers=False,
)


def settings(path: Path | None, overrides: Sequence[str] = ()) -> ServeConfig:
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


def _is_news(record: logging.LogRecord) -> bool:
    """uvicorn takes a handshake that was refused with a status and a body for one that was forgotten."""
    from echat.serve.gate import was_refused

    return not (was_refused.get() and "without completing handshake" in record.getMessage())


def server_of(
    engine: Engine,
    config: ServeConfig,
    bound: list[Listening] | None = None,
    on_start: Callable[[], None] = lambda: None,
) -> uvicorn.Server:
    """A server that is ready to run, and lets its sessions end well when it is told to stop. `bound`: sockets
    it listens at; None: it binds them when it starts. `on_start` is called when it accepts connections."""
    import uvicorn

    from echat.serve.server import make_app

    limits = config.limits
    door = Door(files_allow(limits.connections), limits.connections_per_address)
    app = make_app(engine, config, door)
    logging.getLogger("uvicorn.error").addFilter(_is_news)

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket] | None = None) -> None:
            """Listen with sockets that are counted, and tell where."""
            await self.lifespan.startup()
            if self.lifespan.should_exit:
                sys.exit(STARTUP_FAILURE)
            loop = asyncio.get_running_loop()
            self.servers = []
            for one in listen(config.host, config.port) if bound is None else bound:
                one.door = door
                options: dict[str, Any] = {"sock": one, "backlog": IN_ONE_GO}
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
            await app.state.sessions.leave()
            await super().shutdown()

        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            """Told to stop by SIGTERM the process ends as one that did what it was told."""
            if sig == signal.SIGTERM:
                self.should_exit = True
            else:
                super().handle_exit(sig, frame)

    return Server(_uvicorn_config(app, door, config))


def _uvicorn_config(app: Any, door: Door, config: ServeConfig) -> uvicorn.Config:
    import uvicorn

    from echat.serve.connections import http_connections
    from echat.serve.keepalive import patient_protocol

    return uvicorn.Config(
        app,
        http=http_connections(door, config.limits),
        ws=patient_protocol(),
        ssl_certfile=config.tls_certificate,
        ssl_keyfile=config.tls_key,
        ws_max_size=config.limits.message_bytes,
        timeout_graceful_shutdown=int(config.limits.shutdown_seconds) + 5,
        **UVICORN,
    )


def run(engine: Engine, config: ServeConfig, sockets: list[Listening]) -> None:
    """Serve until a signal, at sockets of `listen`."""
    logging.basicConfig(
        stream=sys.stderr, level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s"
    )
    logging.getLogger("echat.serve").setLevel(logging.INFO)
    sys.setswitchinterval(SWITCH_SECONDS)
    line = f"echat serves at {address_of(config, sockets[0])} (Ctrl-C stops it)"
    server_of(engine, config, sockets, lambda: print(line, file=sys.stderr, flush=True)).run()


def address_of(config: ServeConfig, one: Listening) -> str:
    """Where a browser finds the server."""
    scheme = "https" if config.tls_certificate else "http"
    where = f"[{config.host}]" if ":" in config.host else config.host
    return f"{scheme}://{where}:{one.getsockname()[1]}/"
