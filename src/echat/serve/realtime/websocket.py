"""WebSocket endpoint `/v1/realtime`: connects a socket to a session, within limits of number, time and event
rate."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from echat.serve.app_state import App
from echat.serve.protocol import server
from echat.serve.protocol.wire import ProtocolError
from echat.serve.realtime.send_queue import SendQueue
from echat.serve.realtime.session import RealtimeSession

log = logging.getLogger("echat.serve")

BUSY, LEAVING, POLICY = 1013, 1001, 1008  # close codes: try again later; going away; misuse
CLOSE_SECONDS = 2.0  # for a client to read the last events
RATE_WINDOW = 10.0  # seconds over which the rate of events is averaged
CHARACTERS_OF_AN_EVENT = 2**16  # a longer event counts as several
BETA_PROTOCOL = "openai-beta.realtime-v1"


class CloseConnection(Exception):
    """The server ends the connection."""

    def __init__(self, code: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.code, self.reason = code, reason


class SessionRegistry:
    """The open sessions of a server: admission control and graceful shutdown."""

    def __init__(self, app: App) -> None:
        self.app, self.metrics = app, app.metrics
        self.open: set[RealtimeSession] = set()
        self.shutting_down = asyncio.Event()  # the server shuts down

    @contextmanager
    def admitted(self, session: RealtimeSession) -> Iterator[None]:
        """Count a session while it is open."""
        self.open.add(session)
        self.metrics.sessions_total.inc()
        self.metrics.sessions.set(len(self.open))
        try:
            yield
        finally:
            self.open.discard(session)
            self.metrics.sessions.set(len(self.open))

    def check_capacity(self, from_address: int) -> None:
        """Raise where one more session exceeds a limit; `from_address` counts the new one."""
        limits = self.app.config.limits
        if self.shutting_down.is_set():
            raise CloseConnection(LEAVING, "leaving", "the server shuts down")
        if len(self.open) >= limits.sessions:
            self.metrics.busy.inc()
            raise CloseConnection(BUSY, "server_busy", "all sessions are in use; try again later")
        if from_address > limits.sessions_per_address:
            self.metrics.busy.inc()
            most = limits.sessions_per_address
            message = f"this address has its {most} sessions (limits.sessions_per_address); end one first"
            raise CloseConnection(BUSY, "server_busy", message)

    async def shut_down(self) -> None:
        """End all sessions: each finishes its replies, within a time limit, and is closed with a reason."""
        self.shutting_down.set()
        deadline = time.monotonic() + self.app.config.limits.shutdown_seconds + 2 * CLOSE_SECONDS
        while self.open and time.monotonic() < deadline:
            await asyncio.sleep(0.05)


async def serve_websocket(socket: WebSocket, sessions: SessionRegistry, wanted: dict[str, Any]) -> None:
    """Serve one connection until its end; `wanted` are changes to the session's defaults."""
    offered = socket.scope.get("subprotocols", [])
    is_beta = "realtime=v1" in socket.headers.get("openai-beta", "") or BETA_PROTOCOL in offered
    if "transcription" in socket.query_params.getlist("intent"):
        wanted = {"type": "transcription", **wanted}
    await socket.accept(subprotocol="realtime" if "realtime" in offered else None)
    app = sessions.app
    send_queue = SendQueue(app.config.limits.unsent_bytes)
    session = RealtimeSession(app, send_queue, is_beta, wanted)
    sender = asyncio.create_task(_send(socket, send_queue))
    reason = "client_left"
    try:
        sessions.check_capacity(socket.scope.get("echat.address_sessions", 1))
        with sessions.admitted(session):
            session.open()
            try:
                await _receive(socket, session, sessions.shutting_down, sender)
            except CloseConnection as closing:  # close within `admitted`: it counts until then
                reason = closing.reason
                await _close_gracefully(socket, session, sender, closing)
    except WebSocketDisconnect:
        pass
    except CloseConnection as closing:  # not admitted
        reason = closing.reason
        await _close_gracefully(socket, session, sender, closing)
    except Exception:
        reason = "error"
        sessions.metrics.errors.labels("session").inc()
        log.exception("session %s ended by an error of the server", session.id)
        await _close(socket, 1011, "server_error")
    finally:
        sessions.metrics.sessions_ended.labels(reason).inc()
        await session.close()
        send_queue.close()
        sender.cancel()


async def _receive(
    socket: WebSocket, session: RealtimeSession, shutting_down: asyncio.Event, sender: asyncio.Task[None]
) -> None:
    """Pass every text frame to the session, within its limits of time, event rate and unsent bytes, until the
    sender fails."""
    limits = session.context.config.limits
    deadline = time.monotonic() + limits.session_seconds
    rate = _EventRateLimiter(limits.events_per_second)
    while True:
        message = await _next(
            socket, min(limits.idle_seconds, deadline - time.monotonic()), shutting_down, sender
        )
        if message is None:
            if time.monotonic() >= deadline:
                raise CloseConnection(LEAVING, "session_expired", "the session has reached its longest time")
            raise CloseConnection(LEAVING, "idle", f"nothing came for {limits.idle_seconds:g} s")
        if session.context.send_queue.is_overfull:
            raise CloseConnection(POLICY, "slow_reader", "the client does not read what it is sent")
        text = message.get("text")
        await rate.take(1 + len(text or "") // CHARACTERS_OF_AN_EVENT)
        if text is None:
            session.context.refuse(
                ProtocolError("expected a text frame, found a binary one", "invalid_frame")
            )
        else:
            await session.handle(text)


class _EventRateLimiter:
    """Rate limit as back-pressure (leaky bucket): events above the rate wait, which slows the client down."""

    def __init__(self, per_second: int) -> None:
        self.per_second, self._level, self._before = per_second, 0.0, time.monotonic()

    async def take(self, weight: int) -> None:
        now = time.monotonic()
        self._level = max(0.0, self._level - (now - self._before) * self.per_second) + weight
        self._before = now
        if self._level > self.per_second * RATE_WINDOW:
            await asyncio.sleep(weight / self.per_second)


async def _next(
    socket: WebSocket, seconds: float, shutting_down: asyncio.Event, sender: asyncio.Task[None]
) -> dict[str, str] | None:
    """The next frame; None after a time-out."""
    receive = asyncio.ensure_future(socket.receive())
    shut_down = asyncio.ensure_future(shutting_down.wait())
    ends = {receive, shut_down, sender}
    try:
        await asyncio.wait(ends, timeout=max(0.0, seconds), return_when=asyncio.FIRST_COMPLETED)
        if shut_down.done():
            raise CloseConnection(LEAVING, "leaving", "the server shuts down")
        if sender.done():
            sender.result()  # raises its exception
            raise WebSocketDisconnect(1006)
        if not receive.done():
            return None
        message = receive.result()
    finally:
        shut_down.cancel()
        receive.cancel()
    if message["type"] == "websocket.disconnect":
        raise WebSocketDisconnect(message.get("code", 1005))
    return dict(message)


async def _send(socket: WebSocket, send_queue: SendQueue) -> None:
    """Send the queue to the socket."""
    try:
        while (message := await send_queue.take()) is not None:
            await socket.send_text(message.text)
    except (WebSocketDisconnect, RuntimeError):  # the client is gone
        send_queue.close()


async def _close_gracefully(
    socket: WebSocket, session: RealtimeSession, sender: asyncio.Task[None], closing: CloseConnection
) -> None:
    """At a shutdown wait for running replies; then send the reason and close."""
    if closing.reason == "leaving":
        limit = session.context.config.limits.shutdown_seconds
        await asyncio.wait({asyncio.ensure_future(session.response_manager.finish_all())}, timeout=limit)
    await session.close()
    detail = server.ErrorDetail(type="server_error", code=closing.reason, message=str(closing))
    session.context.emit(server.Error(error=detail))
    session.context.send_queue.close()
    await asyncio.wait({sender}, timeout=CLOSE_SECONDS)
    await _close(socket, closing.code, closing.reason)


async def _close(socket: WebSocket, code: int, reason: str) -> None:
    if socket.application_state is WebSocketState.DISCONNECTED:
        return
    try:
        await asyncio.wait_for(socket.close(code, reason), CLOSE_SECONDS)
    except (RuntimeError, WebSocketDisconnect, TimeoutError):  # already closed
        log.debug("a client left before its close frame was sent")
