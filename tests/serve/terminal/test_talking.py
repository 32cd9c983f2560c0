"""A conversation through files, with the real model; and what is said where there are no devices."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest

import echat
from echat.audio.vad import VoiceActivity
from echat.audio.waveform import read
from echat.cli import main
from echat.serve.metrics import Metrics
from echat.serve.replies import Desk
from echat.serve.settings import ServeConfig
from echat.serve.state import House
from echat.serve.terminal.sounds import PIECE, Devices, Files
from echat.serve.terminal.talking import Talking

QUESTION = Path(echat.__file__).parent / "models" / "echat-tiny" / "examples" / "question.wav"


@pytest.fixture
def house(tiny):
    desk = Desk(tiny, threads=4)
    yield House(desk, ServeConfig(), VoiceActivity(), Metrics())
    desk.close()


class Interrupting(Files):
    """A file that is heard, and heard again as soon as the answer sounds."""

    def __init__(self, source: Path) -> None:
        super().__init__(source, None)
        self.again = 0

    async def pieces(self, is_idle) -> AsyncIterator[np.ndarray]:
        async for piece in super().pieces(is_idle):
            sounds = bool(self.played) and self.played[-1].any()
            if sounds or self.again:
                self.again += 1
            begin = (self.again - 1) * PIECE
            more = self._heard[begin : begin + PIECE] if self.again else piece
            yield np.pad(more, (0, PIECE - len(more)))


def conversation(house: House, sound: Files, **settings) -> tuple[list[tuple[str, str]], Talking]:
    told: list[tuple[str, str]] = []
    talking = Talking(house, sound, lambda who, text: told.append((who, text)), **settings)
    asyncio.run(asyncio.wait_for(talking.run(), 600))
    return told, talking


@pytest.mark.slow
def test_a_question_is_answered(house, tmp_path):
    answer = tmp_path / "answer.wav"
    lines, talking = conversation(house, Files(QUESTION, answer), think="label")
    told = dict(lines)
    assert talking.cut == {}
    assert len(told["you"].split()) > 3
    assert "emotion" in told["thought"]
    assert len(told["echat"].split()) > 2 and "note" not in told
    waveform, rate = read(answer)
    assert rate == 24_000 and len(waveform) > 3 * rate and float(waveform.abs().max()) > 0.05


@pytest.mark.slow
def test_speaking_interrupts(house):
    sound = Interrupting(QUESTION)
    told, talking = conversation(house, sound, think="off")
    assert talking.cut
    for item_id, heard_ms in talking.cut.items():
        assert talking.session.talk.items.get(item_id).spoken.heard_ms == heard_ms
    assert [who for who, _ in told].count("you") == 2
    assert not [text for who, text in told if who == "note"]


@pytest.mark.slow
def test_a_loudspeaker_is_not_heard(house):
    sound = Interrupting(QUESTION)
    told, talking = conversation(house, sound, think="off", listens_while_speaking=False)
    assert talking.cut == {}
    assert not [text for _, text in told if text.endswith("(interrupted)")]


def test_without_devices_it_says_what_to_do(capsys):
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
        with Devices():
            pass

    with pytest.raises(ValueError, match="or talk through files"):
        asyncio.run(opened())


def test_output_needs_an_input(capsys, tmp_path):
    with pytest.raises(SystemExit):
        main(["talk", "-o", str(tmp_path / "a.wav")])
    assert "--input" in capsys.readouterr().err
