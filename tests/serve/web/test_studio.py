"""The studio, driven in a real browser; what it computes, without one."""

from __future__ import annotations

import json
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

import echat
from echat.dialogue.labels import REPLY_EMOTIONS, REPLY_EMOTIONS_IN_ENGLISH

pytest.importorskip("gradio", reason="needs the studio extra")

from echat.serve.studio import layout
from echat.serve.studio.backend import TABLE_HEADERS, Studio

pytestmark = pytest.mark.slow  # a browser
QUESTION = Path(echat.__file__).parent / "models" / "echat-tiny" / "examples" / "question.wav"


@pytest.fixture(scope="module")
def studio(tiny, tmp_path_factory):
    return Studio(tiny, tmp_path_factory.mktemp("studio"))


@pytest.fixture(scope="module")
def url(tiny, tmp_path_factory):
    blocks = layout.start(tiny, "127.0.0.1", None, tmp_path_factory.mktemp("opened"))
    yield blocks.local_url
    blocks.close(verbose=False)


def until(page: Any, look: Any, seconds: float = 600) -> Any:
    end = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < end, page.inner_text("body")
        page.wait_for_timeout(100)
    return found


def test_ask_and_batch_in_the_browser(url, opened, tmp_path):
    page = opened(url)
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.get_by_role("button", name="question.wav").first.click()
    until(page, lambda: page.locator("button[aria-label='Play']").count())
    page.get_by_role("button", name="Answer").click()
    until(page, lambda: all(field.input_value() for field in page.get_by_label("Time").all()[:2]))
    label, words = (field.input_value() for field in page.get_by_label("Thought").all()[:2])
    assert "emotion:" in label and "emotion:" not in words
    assert all(field.input_value() for field in page.get_by_label("Reply").all()[:2])
    pictures = page.locator("img[src*='.png']")
    assert until(page, lambda: pictures.count() == 3)

    page.get_by_role("tab", name="Many files").click()
    broken = tmp_path / "broken.wav"
    broken.write_bytes(b"RIFF....")
    page.locator("input[type=file][multiple]").set_input_files([str(QUESTION), str(broken)])
    until(page, lambda: page.get_by_text("broken").count())
    page.get_by_role("button", name="Run").last.click()
    until(page, lambda: page.get_by_text("records.jsonl").count() or page.get_by_text("records").count())
    assert page.get_by_text("expected").count()
    assert [one for one in asked if not one.startswith((url, "blob:", "data:"))] == []


def test_an_answer_is_streamed(studio):
    received = list(studio.answer(echat_question(studio), "s2s_think_label", seed=0))
    assert len(received) > 3 and received[0].audio is None
    last = received[-1]
    rate, samples = last.audio
    assert samples.dtype == np.int16 and len(samples) > rate // 4
    assert Path(last.picture).read_bytes()[:4] == b"\x89PNG"
    assert set(last.labels) == {"emotion", "age", "gender", "sound_event", "reply_emotion"}
    assert last.text == "".join(last.text) and "total" in last.seconds


def echat_question(studio):
    from echat.dialogue.turns import ask

    return ask(audio=studio.question(str(QUESTION)))


def test_understanding_shows_the_labels_of_the_task(studio):
    (*_, last) = studio.answer(echat_question(studio), "asr_age_gender", seed=0)
    assert list(last.labels) == ["words", "age", "gender"]


def test_own_voice(studio):
    voice = studio.voice("slt", str(QUESTION))
    (rate, samples), picture = studio.say("it is good to hear you", voice, seed=0)
    other, _ = studio.say("it is good to hear you", studio.voice("slt", None), seed=0)
    assert len(samples) > rate // 4 and Path(picture).is_file()
    assert len(samples) != len(other[1]) or (samples != other[1]).any()


def test_many_files_name_the_bad_ones(studio, tmp_path):
    silent = tmp_path / "silent.wav"
    soundfile.write(silent, np.zeros(16_000), 16_000)
    rows, files = studio.batch([str(QUESTION), str(silent)], "s2s", seed=0)
    good, bad = (dict(zip(TABLE_HEADERS, row)) for row in rows)
    assert good["reply"] and not good["error"]
    assert bad["error"].startswith("silent.wav: expected sound") and not bad["reply"]
    records = [json.loads(line) for line in Path(files[0]).read_text("utf-8").splitlines()]
    assert [record["file"] for record in records] == ["question.wav", "silent.wav"]
    assert zipfile.ZipFile(files[1]).namelist() == ["001-question.wav"]


@pytest.mark.parametrize(
    "act", [lambda s: s.question(None), lambda s: s.say("  ", None, 0), lambda s: s.batch([], "asr", 0)]
)
def test_missing_input_is_an_error(studio, act):
    with pytest.raises(ValueError, match="expected .* found none"):
        act(studio)


def test_reply_emotions_have_english_names():
    assert set(REPLY_EMOTIONS_IN_ENGLISH) == set(REPLY_EMOTIONS)
