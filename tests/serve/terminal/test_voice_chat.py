"""Voice chat with audio files and the real model; errors without sound devices."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest

import echat
from echat.audio.vad import VoiceActivityDetector
from echat.audio.waveform import read
from echat.cli import main
from echat.serve.app_state import App
from echat.serve.async_engine import AsyncEngine
from echat.serve.metrics import Metrics
from echat.serve.settings import ServeConfig
from echat.serve.terminal.audio_io import PIECE, DeviceAudio, FileAudio
from echat.serve.terminal.voice_chat import VoiceChat

QUESTION = Path(echat.__file__).parent / "models" / "echat-tiny" / "examples" / "question.wav"


@pytest.fixture
def app(tiny):
    async_engine = AsyncEngine(tiny, threads=4)
    yield App(async_engine, ServeConfig(), VoiceActivityDetector(), Metrics())
    async_engine.close()


class Interrupting(FileAudio):
    """An input file that is played again as soon as the answer starts."""

    def __init__(self, source: Path) -> None:
        super().__init__(source, None)
        self.again = 0

    async def pieces(self, is_idle) -> AsyncIterator[np.ndarray]:
        async for piece in super().pieces(is_idle):
            sounds = bool(self.played) and self.played[-1].any()
            if sounds or self.again:
                self.again += 1
            begin = (self.again - 1) * PIECE
            more = self._input[begin : begin + PIECE] if self.again else piece
            yield np.pad(more, (0, PIECE - len(more)))


def conversation(app: App, sound: FileAudio, **settings) -> tuple[list[tuple[str, str]], VoiceChat]:
    received: list[tuple[str, str]] = []
    chat = VoiceChat(app, sound, lambda who, text: received.append((who, text)), **settings)
    asyncio.run(asyncio.wait_for(chat.run(), 600))
    return received, chat


@pytest.mark.slow
def test_a_question_is_answered(app, tmp_path):
    answer = tmp_path / "answer.wav"
    lines, chat = conversation(app, FileAudio(QUESTION, answer), think="label")
    received = dict(lines)
    assert chat.cut == {}
    assert len(received["you"].split()) > 3
    assert "emotion" in received["thought"]
    assert len(received["echat"].split()) > 2 and "note" not in received
    waveform, rate = read(answer)
    assert rate == 24_000 and len(waveform) > 3 * rate and float(waveform.abs().max()) > 0.05


@pytest.mark.slow
def test_speaking_interrupts(app):
    sound = Interrupting(QUESTION)
    received, chat = conversation(app, sound, think="off")
    assert chat.cut
    for item_id, played_ms in chat.cut.items():
        assert chat.session.context.items.get(item_id).generated.played_ms == played_ms
    assert [who for who, _ in received].count("you") == 2
    assert not [text for who, text in received if who == "note"]


@pytest.mark.slow
def test_without_full_duplex_the_loudspeaker_is_not_recorded(app):
    sound = Interrupting(QUESTION)
    received, chat = conversation(app, sound, think="off", is_full_duplex=False)
    assert chat.cut == {}
    assert not [text for _, text in received if text.endswith("(interrupted)")]


def test_missing_devices_are_an_error_with_a_remedy(capsys):
    try:
        import sounddevice

        if len(sounddevice.query_devices()):
            pytest.skip("this machine has sound devices")
    except OSError:
        pass
    with pytest.raises(SystemExit):
        main(["talk"])
    said = capsys.readouterr().err
    assert "--input" in said and said.startswith("error: sound: expected") and said.count("\n") == 1

    async def opened() -> None:
        with DeviceAudio():
            pass

    with pytest.raises(ValueError, match="or use files"):
        asyncio.run(opened())


def test_output_needs_an_input(capsys, tmp_path):
    with pytest.raises(SystemExit):
        main(["talk", "-o", str(tmp_path / "a.wav")])
    assert "--input" in capsys.readouterr().err
