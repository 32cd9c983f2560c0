"""A headless Chromium whose microphone is a WAV file."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

import echat

playwright = pytest.importorskip("playwright.sync_api", reason="needs the dev extra")

QUESTION = Path(echat.__file__).parent / "models" / "echat-tiny" / "examples" / "question.wav"
RATE = 24_000
RECORDER = """
window.played = {};
document.addEventListener("echat-played", ({ detail: { id, samples } }) => {
  (window.played[id] ??= []).push(...samples);
});
"""


@pytest.fixture(scope="session")
def chromium() -> str:
    """The browser of the distribution."""
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        pytest.skip("no Chromium here: apt-get install chromium")
    return path


@pytest.fixture(scope="module")
def driver() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        yield started


@pytest.fixture(scope="module")
def browser(chromium: str, driver: Any, tmp_path_factory: Any) -> Iterator[Callable[..., Any]]:
    """`browser(silence_after=...)`: one whose microphone asks a question, is silent for so long (None: for
    good), and begins again."""
    opened: dict[float | None, Any] = {}

    def with_microphone(silence_after: float | None = None) -> Any:
        if silence_after not in opened:
            path = tmp_path_factory.mktemp("microphone") / "said.wav"
            soundfile.write(path, said(silence_after), 16_000)
            file = f"{path}%noloop" if silence_after is None else str(path)
            opened[silence_after] = driver.chromium.launch(
                executable_path=chromium,
                args=[
                    "--use-fake-device-for-media-stream",
                    "--use-fake-ui-for-media-stream",
                    f"--use-file-for-fake-audio-capture={file}",
                ],
            )
        return opened[silence_after]

    yield with_microphone
    for one in opened.values():
        one.close()


def said(silence_after: float | None) -> np.ndarray:
    """A question with quiet around it, 16 kHz."""
    waveform, rate = soundfile.read(QUESTION)
    assert rate == 16_000
    quiet = np.random.default_rng(0).normal(0, 1e-4, 16_000 * 60)
    after = 30.0 if silence_after is None else silence_after
    return np.concatenate([quiet[: rate // 2], waveform, quiet[: int(rate * after)]])


@pytest.fixture
def opened(browser: Callable[..., Any]) -> Iterator[Callable[..., Any]]:
    """`opened(url, silence_after=..., **context)`: a tab. It may not complain in its console."""
    contexts, complaints = [], []

    def tab(url: str, silence_after: float | None = None, **settings: Any) -> Any:
        context = browser(silence_after).new_context(**settings)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(600_000)  # against a hang, no bound on speed
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda line: line.type == "error" and complaints.append(line.text))
        page.add_init_script(RECORDER)
        page.complaints = complaints
        page.goto(url)
        return page

    yield tab
    for context in contexts:
        context.close()
    assert not complaints
