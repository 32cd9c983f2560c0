"""`echat talk`: everything one conversation needs, on this machine."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from echat.audio.vad import VoiceActivity
from echat.infer.engine import Engine
from echat.serve.metrics import Metrics
from echat.serve.protocol.session import Think
from echat.serve.replies import Desk
from echat.serve.running import SWITCH_SECONDS
from echat.serve.settings import ServeConfig
from echat.serve.state import House
from echat.serve.terminal.sounds import Devices, Files, SoundPlace
from echat.serve.terminal.talking import Talking, Tell

THREADS = 4  # for one session


def run(
    engine: Engine,
    tell: Tell,
    think: Think,
    voice: str | None,
    source: Path | None,
    target: Path | None,
    device: int | str | None,
    listens_while_speaking: bool,
) -> None:
    """Talk until a file ends or somebody presses Ctrl-C."""
    sound: SoundPlace = Files(source, target) if source is not None else Devices(device)
    sys.setswitchinterval(SWITCH_SECONDS)
    desk = Desk(engine, threads=THREADS)
    house = House(desk, ServeConfig(), VoiceActivity(), Metrics())
    try:
        asyncio.run(Talking(house, sound, tell, think, voice, listens_while_speaking).run())
    finally:
        desk.close()
