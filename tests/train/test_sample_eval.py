"""Looks at real outputs: they are measured and kept, and the run goes on as if nobody had looked."""

from __future__ import annotations

import json

import pytest
import soundfile

from echat.train.recipe import OBJECTIVES
from echat.train.trainer import train

DECODE = {"every_steps": 3, "records": 4, "samples": 1}


def rows(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_evaluating_samples_changes_no_step(objective, recipe, corpus):
    held_out = {"validation": [str(corpus / "manifest.jsonl")]}
    changes = {} if objective in ("encoder_ctc", "speech_llm") else held_out
    blind = train(recipe(objective, "blind", **changes)).parent
    seeing = train(recipe(objective, "seeing", decode=DECODE, **changes)).parent
    assert [row for row in rows(blind) if "loss" in row] == [row for row in rows(seeing) if "loss" in row]


@pytest.mark.slow
def test_dialogues_are_measured_by_what_their_task_writes(recipe, corpus):
    source = {"path": str(corpus / "manifest.jsonl"), "split": "dev"}
    source["tasks"] = {"asr": 1, "understand": 1, "s2t_think_label": 1, "s2t_think_language": 1, "tts": 1}
    data = {"sources": [source | {"split": "train", "tasks": {"asr": 1}}], "validation": [source]}
    folder = train(recipe("speech_llm", data=data, decode=DECODE, budget={"steps": 3})).parent
    (found,) = (row["validation"] for row in rows(folder) if "asr/word_errors" in row.get("validation", {}))
    assert {
        "understand/emotion_accuracy",
        "s2t_think_label/parses",
        "s2t_think_language/parses",
    } <= found.keys()
    assert found["s2t_think_label/word_errors"] >= 0 and 0 <= found["understand/gender_accuracy"] <= 1
    evaluation = folder / "samples" / "step-00000003" / "samples.jsonl"
    kept = [json.loads(line) for line in evaluation.read_text().splitlines()]
    assert sorted(row["task"] for row in kept) == sorted(source["tasks"])
    assert all(row["wanted"] and (row["task"] == "tts") != bool(row["question"]) for row in kept)


@pytest.mark.slow
def test_the_vocoder_leaves_sounds_to_listen_to(recipe, corpus):
    held_out = [str(corpus / "manifest.jsonl")]
    folder = train(recipe("vocoder", decode=DECODE, validation=held_out, budget={"steps": 3})).parent
    (sound,) = (folder / "samples" / "step-00000003").glob("*.wav")
    assert soundfile.info(sound).samplerate == 22050
