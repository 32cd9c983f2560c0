"""The page in a real browser with a WAV as its microphone, and a real server."""

from __future__ import annotations

import json
import time
from typing import Any

import numpy as np
import pytest
import torch

from echat.eval.judge import missing_programs, transcribe
from echat.metrics import edit_distance, words
from echat.serve.keys import Keys

pytestmark = pytest.mark.slow  # a browser
RATE = 24_000


def home(live: Any) -> str:
    return live.url.removesuffix("/v1") + "/"


def until(page: Any, what: str, seconds: float = 600) -> None:
    """Wait for a condition. (The page's content security policy forbids Playwright's own way.)"""
    end = time.monotonic() + seconds
    while not page.evaluate(f"Boolean({what})"):
        assert time.monotonic() < end, f"{what}; the page says: {page.inner_text('body')}"
        page.wait_for_timeout(50)


def played(page: Any, item_id: str) -> np.ndarray:
    """The samples of an answer that left the page."""
    return np.array(page.evaluate("id => window.played[id] ?? []", item_id), dtype=np.float32)


def saved_turns(page: Any) -> list[dict[str, Any]]:
    """The conversation as the page saves it."""
    with page.expect_download() as saved:
        page.get_by_role("button", name="Save the conversation").click()
    return json.loads(saved.value.path().read_text())["turns"]


IS_PLAYED = "document.querySelector('.turn.assistant') && document.body.dataset.state === 'ready'"


def test_a_conversation_with_transcript_thought_and_audio(live, opened):
    page = opened(home(live))
    assert page.inner_text("#model") == "echat-tiny"
    page.get_by_role("button", name="Start talking").click()
    until(page, "document.querySelector('.chips li')")
    until(page, IS_PLAYED)
    said = page.inner_text(".turn.user .words")
    assert len(words(said)) > 3
    kinds = page.eval_on_selector_all(".chips li", "all => all.map(one => one.dataset.kind)")
    assert {"emotion", "age", "gender", "reply_emotion"} <= set(kinds)
    assert "Transcript" in page.inner_text(".thought .words")
    answer = page.inner_text(".turn.assistant > .words")
    assert len(words(answer)) > 2
    (item_id,) = page.evaluate("Object.keys(window.played)")
    sound = played(page, item_id)
    assert 0.3 < len(sound) / RATE < 30 and np.abs(sound).max() > 0.05
    assert "first audio after your turn" in page.inner_text("#latency")
    until(page, "document.querySelector('#latency').textContent.includes('synthesis')")
    if missing_programs() is None:
        recognized, wanted = words(transcribe(torch.from_numpy(sound), RATE)), words(answer)
        assert edit_distance(wanted, recognized) <= 0.6 * len(wanted), (wanted, recognized)
    user, echat = saved_turns(page)
    assert (user["text"], echat["text"], echat["thought"]["form"]) == (said, answer, "label")
    page.get_by_role("button", name="Stop talking").click()
    page.get_by_role("button", name="Start talking").click()  # goes on with what was said
    until(page, "document.body.dataset.state === 'speaking'")
    assert page.is_hidden("#trouble") and page.locator(".turn.assistant").count() == 1


def test_speaking_interrupts(live, opened):
    page = opened(home(live), silence_after=1.0)  # the microphone asks again and again
    page.select_option("#think", "off")
    page.get_by_role("button", name="Start talking").click()
    until(page, "document.body.dataset.state === 'thinking'")
    page.keyboard.press("m")
    until(page, "document.body.dataset.state === 'answering'")
    page.keyboard.press("m")
    until(page, "document.querySelectorAll('.turn.user').length === 2")
    page.keyboard.press("m")
    (item_id, *_) = page.evaluate("Object.keys(window.played)")
    page.wait_for_timeout(300)
    before = len(played(page, item_id))
    note = page.inner_text(f'.turn[data-id="{item_id}"] .note')
    page.wait_for_timeout(500)
    assert (note, len(played(page, item_id))) == ("interrupted", before)
    answer = next(turn for turn in saved_turns(page) if turn["role"] == "assistant")
    assert answer["text"].startswith(answer["heard"])


def test_a_language_thought_and_no_audio_after_stop(live, opened):
    page = opened(home(live))
    page.select_option("#think", "language")
    page.get_by_role("button", name="Start talking").click()
    until(page, "document.querySelector('.thought .words')?.textContent.length > 10")
    page.keyboard.press("Escape")
    until(page, "document.querySelector('.turn.assistant .note')")
    assert page.inner_text(".turn.assistant .note") == "interrupted"
    until(page, "document.querySelector('.turn.assistant .unplayed, .turn.assistant > .words:empty')")
    assert page.locator(".chips li").count() == 0
    assert page.evaluate("document.body.dataset.state") == "ready"
    assert page.evaluate("Object.keys(window.played).length") == 0


def test_keyboard_and_names(live, opened):
    page = opened(home(live), viewport={"width": 360, "height": 740}, color_scheme="dark")
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    nameless = "all => all.filter(one => !(one.labels?.length || one.ariaLabel || one.textContent.trim()))"
    assert page.eval_on_selector_all("button, select, input", f"all => ({nameless})(all).length") == 0
    page.locator("#start").focus()
    page.keyboard.press("Enter")
    until(page, "document.body.dataset.state === 'ready'")
    page.keyboard.press("m")
    assert page.get_attribute("#mute", "aria-pressed") == "true"
    assert "Muted" in page.inner_text("#status")
    page.wait_for_timeout(1500)
    assert page.locator(".turn").count() == 0  # the muted question was not sent
    ground = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(ground)
    page.select_option("#theme", "light")
    assert page.evaluate(ground) != dark
    page.reload()
    assert page.input_value("#theme") == "light"


def test_a_server_with_keys_needs_one(serving, opened, tmp_path):
    keys = tmp_path / "keys.json"
    secret, _ = Keys(keys).add()
    with serving(keys=keys) as locked:
        page = opened(home(locked))
        page.locator("#key").wait_for()
        page.locator("#start").click()
        assert "asks for an API key" in page.inner_text("#trouble")
        page.fill("#key", "echat-wrong")
        page.locator("#start").click()
        until(page, "document.querySelector('#trouble').textContent.includes('refused')")
        page.complaints[:] = [
            one for one in page.complaints if "401" not in one and "uthentication" not in one
        ]  # said by the browser
        page.fill("#key", secret)
        page.locator("#start").click()
        until(page, "document.body.dataset.state === 'ready'")
        page.locator("#start").click()


def test_a_lost_connection_is_shown(serving, opened):
    with serving(limits={"shutdown_seconds": 0.0}) as short:
        page = opened(home(short))
        page.locator("#start").click()
        until(page, "document.body.dataset.state === 'ready'")
    until(page, "!document.querySelector('#trouble').hidden")
    assert page.inner_text("#start") == "Start talking"
    page.complaints.clear()


def test_modules(live, opened):
    page = opened(home(live))
    results = page.evaluate(
        """async () => {
          const { encode, decode } = await import("/page/pcm.js");
          const { Resampler } = await import("/page/resampler.js");
          const tone = (hz) =>
            Float32Array.from({ length: 9600 }, (_, n) => 0.5 * Math.sin((2 * Math.PI * hz * n) / 48000));
          const [sine, high] = [tone(1000), tone(18000)];
          const whole = new Resampler(48000, 24000).push(sine);
          const pieces = new Resampler(48000, 24000);
          const joined = [];
          for (let at = 0; at < sine.length; at += 127) joined.push(...pieces.push(sine.slice(at, at + 127)));
          const odd = new Resampler(44100, 24000).push(sine);
          const rest = (all) => Math.max(...all.slice(200, 4000).map(Math.abs));
          return {
            back: Math.max(...decode(encode(sine)).map((one, n) => Math.abs(one - sine[n]))),
            whole: [...whole], joined, odd: odd.length, alias: rest(new Resampler(48000, 24000).push(high)),
          };
        }"""
    )
    assert results["back"] < 1 / 32768
    assert np.allclose(results["whole"], results["joined"], atol=1e-7)
    assert abs(results["odd"] - 9600 * 24000 / 44100) < 40
    assert results["alias"] < 1e-3
    wanted = 0.5 * np.sin(2 * np.pi * 1000 * np.arange(4000) / 24000)
    assert np.abs(np.array(results["whole"])[200:4000] - wanted[200:]).max() < 2e-3
