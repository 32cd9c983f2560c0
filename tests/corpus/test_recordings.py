"""Recordings of people: only permissive sets, only English transcripts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from echat.corpus.en.spoken_form import normalize_transcript
from echat.corpus.recordings import (
    prompt_texts,
    real_clips,
    recording_rows,
    write_recordings_manifest,
)

ROW = dict(text=None, emotion=None, gender=None, age=None, sound_event=None, lang=None, split="train")


def add_set(pack: Path, name: str, *rows: dict[str, Any]) -> None:
    (pack / name).mkdir()
    lines = [
        json.dumps({**ROW, "key": f"{name}-{i}", "audio": f"{i}.opus", **row}) for i, row in enumerate(rows)
    ]
    (pack / name / "manifest.jsonl").write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Author of the danger trail, Philip Steels, etc.", "author of the danger trail philip steels etc"),
        ("WE CALL IT BEAR", "we call it bear"),
        ("I\u2019m 'here' - don't go", "i'm here don't go"),
        ("room 12", None),
        ("", None),
        (None, None),
        ("...", None),
        ("na\u00efve caf\u00e9", None),
    ],
)
def test_spoken_words(text: str | None, words: str | None) -> None:
    assert normalize_transcript(text) == words


def test_rows_keep_permissive_parts_english_words_and_audible_labels(tmp_path: Path) -> None:
    add_set(tmp_path, "esc", {"origin": "ESC-10", "sound_event": "sneeze"}, {"origin": "ESC-50"})
    add_set(tmp_path, "emodb", {"lang": "de", "text": "Der Lappen", "emotion": "happy"})
    add_set(tmp_path, "donateacry", {"gender": "male", "sound_event": "cry", "age": "child"})
    add_set(tmp_path, "an4", {"lang": "en", "text": "X I SIXTY ONE", "speaker": "s"})
    sets = ("esc", "emodb", "donateacry", "an4")
    rows = list(recording_rows(tmp_path, sets))
    assert [row["key"] for row in rows] == ["esc-0", "emodb-0", "donateacry-0", "an4-0"]
    assert [row["text"] for row in rows] == [None, None, None, "x i sixty one"]
    assert rows[1]["emotion"] == "happy" and rows[2]["gender"] is None and rows[3]["speaker"] == "s"
    assert all(Path(row["audio"]).is_absolute() for row in rows)
    assert write_recordings_manifest(tmp_path, tmp_path / "out" / "manifest.jsonl", sets) == 4
    assert len((tmp_path / "out" / "manifest.jsonl").read_text().splitlines()) == 4


def test_a_missing_set_is_named_and_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="set emodb, found none"):
        write_recordings_manifest(tmp_path, tmp_path / "out" / "manifest.jsonl")
    assert not list((tmp_path / "out").iterdir())


def test_clips_of_sound_events_keep_licence_and_split(tmp_path: Path) -> None:
    sneeze = {"sound_event": "sneeze", "origin": "ESC-10"}
    add_set(tmp_path, "esc", sneeze, sneeze | {"origin": "ESC-50"}, sneeze | {"split": "test"})
    assert [path.name for path in real_clips(tmp_path, "train")["sneeze"]] == ["0.opus"]
    assert [path.name for path in real_clips(tmp_path, "test")["sneeze"]] == ["2.opus"]
    assert real_clips(tmp_path / "nowhere", "train") == {}


def test_prompts_are_distinct_training_sentences(tmp_path: Path) -> None:
    assert prompt_texts(tmp_path) == []
    texts = [("Hello there.", "train"), ("Hello there!", "train"), ("Unseen words", "test")]
    add_set(tmp_path, "kathleen", *({"text": text, "split": split} for text, split in texts))
    assert prompt_texts(tmp_path) == ["hello there"]


def test_written_form_restores_case_or_keeps_it(tmp_path: Path) -> None:
    texts = ["DO YOU KNOW PETER", "X I SIXTY ONE", 'He said "Do, Bea".', "Do you know Saxon.", "room 12"]
    add_set(tmp_path, "an4", *({"lang": "en", "text": text} for text in texts))
    rows = list(recording_rows(tmp_path, ("an4",), written=True))
    assert [row["text"] for row in rows] == [
        "Do you know Peter?",
        "X I sixty one.",
        "He said Do, Bea.",
        "Do you know Saxon?",
        None,
    ]
