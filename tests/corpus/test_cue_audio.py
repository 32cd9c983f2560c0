"""Cues of Kokoro questions: one clip a cue in the voice of the calm clip, test voices kept out."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from echat.audio.waveform import read, write
from echat.corpus.conversations import ClipIndex, ConversationError, manifest_rows, write_records
from echat.corpus.cue_audio import NEUTRAL_ONE_IN, CueLine, cue_lines, deliver, speak_cues
from echat.corpus.manifests import read_jsonl, reply_audio_key, write_jsonl
from echat.corpus.synthesis.kokoro import HELD_OUT_VOICES

RATE = 24_000
CUES = ("neutral", "angry", "sad", "child, fear", "old", "laugh", "disgust", "scream", "throat_clearing")


def voice(f0: float = 200.0, seconds: float = 1.2, rate: int = RATE) -> np.ndarray:
    """A buzz with the harmonics of a voice, whose pitch swings."""
    time = np.arange(int(seconds * rate)) / rate
    phase = 2 * np.pi * np.cumsum(f0 * (1 + 0.1 * np.sin(9 * time))) / rate
    wave = sum(np.sin(k * phase) / k for k in range(1, 12))
    return np.asarray(0.08 * wave / np.std(wave), dtype=np.float32)


def calm_row(key: str = "question-1", name: str = "af_bella", text: str = "the tap drips") -> dict:
    gender = {"f": "female", "m": "male"}[name[1]]
    row = dict(
        key=key, audio=f"audio/{key}.flac", text=text, lang="en", split="train", voice=f"kokoro:{name}"
    )
    return row | dict(speed=1.0, emotion="neutral", age="adult", gender=gender, origin="x", duration_s=1.2)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """A cue set, its calm clip in a woman's voice, and the answers."""
    answers = [{"cue": cue, "tone": "neutral", "thought": "Hm.", "reply": f"To {cue}."} for cue in CUES]
    (tmp_path / "texts").mkdir()
    one = [{"id": "home-1", "say": ["the tap drips", "It drips."], "answers": answers}]
    (tmp_path / "texts" / "cues-home.yaml").write_text(json.dumps(one))
    out = tmp_path / "out"
    write_jsonl(out / "questions" / "manifest.jsonl", [calm_row()])
    (out / "questions" / "audio").mkdir()
    write(out / "questions" / "audio" / "question-1.flac", voice(), RATE)
    rows = [{"key": reply_audio_key(one["reply"]), "audio": "a.flac"} for one in answers]
    write_jsonl(out / "answers" / "manifest.jsonl", rows)
    return tmp_path


def labels(rows: list[dict]) -> set[tuple[str, ...]]:
    return {(row["emotion"], row["age"], row["sound_event"]) for row in rows}


def test_every_cue_that_can_be_made_gets_a_clip_once(
    corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = speak_cues(corpus / "texts", corpus / "out", {})
    rows = read_jsonl(corpus / "out" / "cues" / "manifest.jsonl")
    wanted = {
        ("angry", "adult", "none"),
        ("sad", "adult", "none"),
        ("fear", "child", "none"),
        ("neutral", "old", "none"),
        ("neutral", "adult", "laugh"),
    }
    assert labels(rows) - {("neutral", "adult", "none")} == wanted and made == len(rows)
    assert "CPU seconds each" in capsys.readouterr().out
    manifest = corpus / "out" / "cues" / "manifest.jsonl"
    before = manifest.read_text()
    manifest.write_text(before[: before.rindex("{")] + '{"key": "torn')  # killed while it wrote
    assert speak_cues(corpus / "texts", corpus / "out", {}) == 1
    assert manifest.read_text() == before
    for row in rows:
        wave, rate = read(corpus / "out" / "cues" / row["audio"])
        assert (rate, round(len(wave) / rate, 3)) == (16_000, row["duration_s"])
        assert row["gender"] == (None if row["age"] == "child" else "female")


def test_a_clip_depends_on_the_calm_clip_and_the_labels_alone() -> None:
    calm = voice(rate=16_000)
    line = CueLine(calm_row(), "fear", "old", "cough")
    first, details = deliver(line, calm, {})
    again, _ = deliver(line, calm, {})
    assert np.array_equal(first, again) and details["event_place"] in ("before", "after", "between")
    other, _ = deliver(CueLine(calm_row("question-2"), "fear", "old", "cough"), calm, {})
    assert not np.array_equal(first, other)


def test_loudness_of_a_cue_is_relative_to_the_calm_clip() -> None:
    calm = voice(rate=16_000)

    def level(emotion: str) -> float:
        wave, _ = deliver(CueLine(calm_row(), emotion, "adult", "none"), calm, {})
        return 20 * np.log10(np.std(wave) / np.std(calm))

    assert abs(level("neutral")) < 2.0
    assert level("sad") < -3.5
    assert level("angry") > 2.0


def test_an_event_alone_leaves_the_words_untouched() -> None:
    calm = 0.3 * voice(rate=16_000)
    wave, details = deliver(CueLine(calm_row(), "neutral", "adult", "sigh"), calm, {})
    where = {"before": slice(-len(calm), None), "after": slice(0, len(calm))}
    if details["event_place"] != "between":
        assert np.allclose(wave[where[details["event_place"]]], calm, atol=1e-6)
    assert len(wave) > len(calm)


@pytest.mark.parametrize(
    ("row", "cue", "count"),
    [
        (calm_row(name="am_adam"), "child", 0),  # a child is made of a woman's voice
        (calm_row(name="am_adam"), "angry", 1),
        (calm_row(name="am_adam"), "angry, female", 0),
        (calm_row(name=HELD_OUT_VOICES[0]), "angry", 0),
        (calm_row(text="other words"), "angry", 0),
    ],
)
def test_lines_suit_the_voice(tmp_path: Path, row: dict, cue: str, count: int) -> None:
    one = [{"id": "a", "say": ["the tap drips"], "answers": [{"cue": cue}]}]
    (tmp_path / "cues-a.yaml").write_text(json.dumps(one))
    assert len(list(cue_lines(tmp_path, [row], {}))) == count


def test_some_calm_clips_go_through_the_vocoder_and_recorded_events_need_recordings(tmp_path: Path) -> None:
    answers = [{"cue": "neutral"}, {"cue": "throat_clearing"}]
    one = [{"id": "a", "say": ["the tap drips"], "answers": answers}]
    (tmp_path / "cues-a.yaml").write_text(json.dumps(one))
    rows = [calm_row(f"question-{number}") for number in range(300)]
    lines = list(cue_lines(tmp_path, rows, {}))
    assert all(line.is_plain for line in lines)
    assert 300 / NEUTRAL_ONE_IN * 0.7 < len(lines) < 300 / NEUTRAL_ONE_IN * 1.3
    with_sound = cue_lines(tmp_path, rows, {"throat_clearing": [tmp_path / "ahem.wav"]})
    assert sum(line.sound_event == "throat_clearing" for line in with_sound) == 300


def test_an_unknown_cue_is_named(tmp_path: Path) -> None:
    one = [{"id": "a", "say": ["the tap drips"], "answers": [{"cue": "cross"}]}]
    (tmp_path / "cues-a.yaml").write_text(json.dumps(one))
    with pytest.raises(ConversationError, match=r"cues-a.yaml, conversation a: .*found 'cross'"):
        list(cue_lines(tmp_path, [calm_row()], {}))


def test_records_join_the_clip_of_their_cue_and_write_what_is_heard(corpus: Path) -> None:
    speak_cues(corpus / "texts", corpus / "out", {})
    counts = write_records(corpus / "texts", corpus / "data", corpus / "out")
    spoken = read_jsonl(corpus / "data" / "spoken.jsonl")
    assert ("angry", "adult", "none") in labels(spoken) and ("fear", "child", "none") in labels(spoken)
    for row in spoken:
        assert row["text"] == "The tap drips."
        assert row["thought"] == 'The user says: "The tap drips.". Hm.'
        assert (corpus / "data" / row["audio"]).resolve().is_file()
    assert {row["gender"] for row in spoken if row["age"] == "child"} == {None}
    questions = read_jsonl(corpus / "data" / "questions.jsonl")
    assert counts[corpus / "data" / "questions.jsonl"] == len(questions) > 5
    assert {row["text"] for row in questions} == {"The tap drips."}
    assert any(row["text"] == "the tap drips" for row in manifest_rows(corpus / "texts"))  # typed, as it is
    assert ClipIndex.of(corpus / "out", corpus).answers
