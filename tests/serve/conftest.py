"""Fixtures: a real server with the shipped model, and real speech."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.serve.session_client import SessionClient

import echat
from echat.audio.vad import VoiceActivityDetector
from echat.audio.waveform import read, to_int16
from echat.infer.engine import Engine
from echat.infer.loading import load
from echat.serve.app_state import App
from echat.serve.async_engine import AsyncEngine
from echat.serve.metrics import Metrics
from echat.serve.realtime.send_queue import SendQueue
from echat.serve.realtime.session import RealtimeSession
from echat.serve.settings import ServeConfig

pytest.importorskip("fastapi", reason="needs the serve extra")
pytest.importorskip("silero_vad", reason="needs the serve extra")

EXAMPLES = Path(echat.__file__).parent / "models" / "echat-tiny" / "examples"


class Live:
    """A running server."""

    def __init__(self, engine: Engine, config: ServeConfig) -> None:
        from echat.serve.server import make_server

        self.server = make_server(engine, config)
        self.app = self.server.config.app
        self._thread = threading.Thread(target=lambda: asyncio.run(self.server.serve()), daemon=True)
        self._thread.start()
        while not self.server.started:
            assert self._thread.is_alive(), "the server did not start"
            time.sleep(0.01)
        self.port: int = self.server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/v1"

    def stop(self) -> None:
        self.server.should_exit = True
        self._thread.join(30)
        assert not self._thread.is_alive()


@pytest.fixture(scope="session")
def tiny() -> Engine:
    return load("echat-tiny")


@pytest.fixture(scope="session")
def serving(tiny: Engine) -> Callable[..., Any]:
    """`with serving(limits={...}) as live:` a server of its own."""

    @contextmanager
    def start(**settings: Any) -> Iterator[Live]:
        live = Live(tiny, ServeConfig.model_validate({"port": 0, **settings}))
        try:
            yield live
        finally:
            live.stop()

    return start


@pytest.fixture(scope="session")
def live(serving: Callable[..., Any]) -> Iterator[Live]:
    """One server that many tests share."""
    with serving() as server:
        yield server


@pytest.fixture(scope="session")
def question() -> bytes:
    """A spoken question, 24 kHz PCM."""
    waveform, _ = read(EXAMPLES / "question.wav", 24_000)
    return pcm(waveform.numpy())


def pcm(waveform: np.ndarray) -> bytes:
    """Float samples as 16-bit PCM."""
    return to_int16(waveform).astype("<i2").tobytes()


def silence(seconds: float) -> bytes:
    """24 kHz PCM of a quiet room."""
    noise = np.random.default_rng(0).normal(0, 3, int(24_000 * seconds))
    return np.round(noise).astype("<i2").tobytes()


@pytest.fixture(scope="session")
def app(tiny: Any) -> Any:
    async_engine = AsyncEngine(tiny, threads=8)
    yield lambda **config: App(
        async_engine, ServeConfig.model_validate(config), VoiceActivityDetector(), Metrics()
    )
    async_engine.close()


@pytest.fixture
def talking(app: Callable[..., App]) -> Callable[..., None]:
    def run(dialogue: Callable[[Any], Awaitable[None]], beta: bool = False, **config: Any) -> None:
        async def whole() -> None:
            session = RealtimeSession(app(**config), SendQueue(2**23), beta)
            session.open()
            client = SessionClient(session)
            await client.until("session.created")
            try:
                await dialogue(client)
            finally:
                await session.close()

        asyncio.run(whole())

    return run


@pytest.fixture(scope="session")
def quiet() -> Callable[[float], bytes]:
    """`quiet(seconds)`: a room in which nobody speaks."""
    return silence


LIVE = (
    *("test_page", "test_studio", "test_agents_client", "test_openai_sdk", "test_voice_chat"),
    *("test_voice_frameworks", "test_phone_bridge"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Foreign clients and browsers keep their own time: on a busy machine they get a second chance."""
    for item in items:
        if item.path.stem in LIVE and "serve" in item.path.parts:
            item.add_marker(pytest.mark.flaky(reruns=2))
