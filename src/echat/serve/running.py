"""Starting a server: settings from a file and the command line, then uvicorn until it is told to stop."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from echat.config import apply_override, read_yaml, validate
from echat.serve.settings import ServeConfig

if TYPE_CHECKING:
    from socket import socket

    import uvicorn

    from echat.infer.engine import Engine

SWITCH_SECONDS = 0.001  # how long one Python thread may keep the others waiting; the default is 5 ms


def settings(path: Path | None, overrides: Sequence[str] = ()) -> ServeConfig:
    """The settings of a file, with overrides."""
    values: dict[str, Any] = read_yaml(path) if path is not None else {}
    for override in overrides:
        apply_override(values, override)
    return validate(ServeConfig, values, str(path or "echat serve"))


def _is_news(record: logging.LogRecord) -> bool:
    """uvicorn takes a handshake that was refused with a status and a body for one that was forgotten."""
    from echat.serve.gate import was_refused

    return not (was_refused.get() and "without completing handshake" in record.getMessage())


def server_of(engine: Engine, config: ServeConfig) -> uvicorn.Server:
    """A server that is ready to run, and lets its sessions end well when it is told to stop."""
    import uvicorn

    from echat.serve.keepalive import patient_protocol
    from echat.serve.server import make_app

    app = make_app(engine, config)
    logging.getLogger("uvicorn.error").addFilter(_is_news)

    class Server(uvicorn.Server):
        async def shutdown(self, sockets: list[socket] | None = None) -> None:
            await app.state.sessions.leave()
            await super().shutdown(sockets)

    return Server(
        uvicorn.Config(
            app,
            host=config.host,
            port=config.port,
            ws=patient_protocol(),
            ws_max_size=config.limits.message_bytes,
            ws_per_message_deflate=False,  # base64 of sound barely compresses
            ws_ping_interval=20.0,
            ws_ping_timeout=20.0,
            timeout_graceful_shutdown=int(config.limits.shutdown_seconds) + 5,
            timeout_keep_alive=10,
            ssl_certfile=config.tls_certificate,
            ssl_keyfile=config.tls_key,
            server_header=False,
            access_log=False,  # paths and addresses of users are nobody's business
            log_config=None,
            proxy_headers=False,
        )
    )


def run(engine: Engine, config: ServeConfig) -> None:
    """Serve until a signal."""
    logging.basicConfig(
        stream=sys.stderr, level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s"
    )
    logging.getLogger("echat.serve").setLevel(logging.INFO)
    sys.setswitchinterval(SWITCH_SECONDS)
    scheme = "https" if config.tls_certificate else "http"
    where = f"[{config.host}]" if ":" in config.host else config.host
    print(f"echat serves at {scheme}://{where}:{config.port}/ (Ctrl-C stops it)", file=sys.stderr)
    server_of(engine, config).run()
