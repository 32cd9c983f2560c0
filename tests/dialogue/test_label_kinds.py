"""A label kind is one row: one that this test adds is read, written, counted, asked for, trained, evaluated.

The row joins the table in a process of its own, before anything derives from it.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib import resources
from typing import Any

import pytest

from echat.dialogue.label_kinds import LABEL_KINDS
from echat.dialogue.labels import SHOWN_KINDS

WITH_ACCENT = """
import json, sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

from echat.dialogue.label_kinds import LABEL_KINDS, LabelSpec

LABEL_KINDS["accent"] = LabelSpec(
    "accent", ("scottish", "indian"), shown=7, caption="accent", aliases={"scots": "scottish"},
    osum_field="accent", thought_slot="口音为:", is_ctc_target=True, is_evaluated=True,
)

from echat.dialogue.prompts import _read
from echat.dialogue import tasks

_read("echat")["user"]["accent"] = "Accent?"  # what prompts/echat.yaml would say
tasks.TASKS["accent"] = replace(tasks.TASKS["age"], name="accent", prompt="accent", labels=("accent",))

from echat.data.eligibility import can_serve
from echat.data.formats.audio_folder import AudioFolder
from echat.data.formats.manifest import row_of, sample_of
from echat.data.formats.osum_record import from_record, to_record
from echat.data.speech_examples import has_encoder_targets
from echat.data.tools.inspection import facts
from echat.data.tools.statistics import AudioLengths, CorpusStatistics
from echat.dialogue.labels import CTC_KINDS, Labels, describe_voice
from echat.dialogue.rendering import pseudo_audio_text, target_text
from echat.dialogue.thinking import LabelThought, format_thought, parse_reply
from echat.dialogue.turns import AssistantTurn, UserTurn
from echat.dialogue.understanding import parse_understanding
from echat.eval.benchmark import run
from echat.eval.benchmarks.understanding import UnderstandingBenchmark as Benchmark
from echat.infer.events import Understanding
from echat.model.speech_encoder import EncoderConfig
from echat.train.objectives.encoder_ctc import CTCEncoder

folder = AudioFolder(".", "/")
sample = sample_of({"key": "a", "audio": "a.wav", "text": "aye", "accent": "Scots"}, folder)
again = sample_of(row_of(sample, "."), folder)
record, sounds = to_record(sample)
totals = CorpusStatistics()
totals.add(sample, AudioLengths())
task = tasks.get_task("accent")
silent = replace(sample, text=None, labels=Labels(accent="indian"))
thought = LabelThought.from_labels("aye", sample.labels)
encoder = CTCEncoder(EncoderConfig(blocks=1, dim=8, heads=1, ffn=8), 3)

class Engine:
    token2wav = None

    def understand_batch(self, sounds, task):
        raw = {"accent": "<INDIAN>"}.get(task, "aye")
        labels = parse_understanding(tasks.get_task(task), raw).labels
        return [Understanding(raw, labels, raw) for _ in sounds]

from echat.audio.waveform import write
import torch
write(Path(sys.argv[1]), torch.rand(16000) * 0.1, 16000)
manifest = Path(sys.argv[1]).with_name("manifest.jsonl")
manifest.write_text(json.dumps({"key": "a", "audio": "a.wav", "text": "aye", "accent": "scottish"}))
report = run(Benchmark(manifest=[manifest]), Engine())

print(json.dumps({
    "manifest row": row_of(sample, "."),
    "manifest read": again.labels.accent,
    "unknown spelling": sample_of({"key": "a", "accent": "martian"}, folder).extra,
    "record": record["extra"].get("accent"),
    "record read": from_record(record, sounds).labels.accent,
    "counts": dict(totals.words["accent"]),
    "shown": facts(sample)["accent"],
    "serves": [can_serve(sample, task), can_serve(replace(sample, labels=Labels()), task)],
    "serves thought": can_serve(replace(silent, text="aye", reply="ok"), tasks.get_task("s2t_think_label")),
    "prompt": task.prompt_for("echat"),
    "target": target_text(UserTurn("aye", labels=sample.labels), AssistantTurn(None), task),
    "thought": format_thought(thought),
    "thought read": parse_reply(format_thought(thought) + "ok").thought.labels.accent,
    "ctc text": pseudo_audio_text("aye", sample.labels),
    "ctc kinds": CTC_KINDS,
    "ctc classes": encoder.label_heads["accent"].out_features,
    "encoder target": has_encoder_targets(silent),
    "evaluated": report.overall.labels["accent"].as_dict(),
}, default=str))
"""


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    sound = tmp_path_factory.mktemp("accent") / "a.wav"
    command = [sys.executable, "-c", WITH_ACCENT, str(sound)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def test_manifests_hold_it(seen: dict[str, Any]) -> None:
    assert seen["manifest row"]["accent"] == seen["manifest read"] == "scottish"
    assert seen["unknown spelling"] == {"accent": "martian"}


def test_published_records_hold_it(seen: dict[str, Any]) -> None:
    assert seen["record"] == "<SCOTTISH>" and seen["record read"] == "scottish"


def test_it_is_counted_and_shown(seen: dict[str, Any]) -> None:
    assert seen["counts"] == {"scottish": 1} and seen["shown"] == "scottish"


def test_a_record_with_it_serves_the_task_that_asks_for_it(seen: dict[str, Any]) -> None:
    assert seen["serves"] == [True, False] and seen["serves thought"]
    assert (seen["prompt"], seen["target"]) == ("Accent?", "<SCOTTISH>")


def test_a_label_thought_has_a_slot_for_it(seen: dict[str, Any]) -> None:
    assert "口音为:<SCOTTISH>" in seen["thought"] and seen["thought read"] == "scottish"


def test_the_encoder_is_trained_on_it(seen: dict[str, Any]) -> None:
    assert seen["ctc text"].endswith("scottish:aye") and "accent" in seen["ctc kinds"]
    assert seen["ctc classes"] == 2 and seen["encoder target"]


def test_understanding_of_it_is_evaluated(seen: dict[str, Any]) -> None:
    assert seen["evaluated"]["confusion"] == {"scottish": {"indian": 1}}


def test_the_web_page_shows_the_kinds_of_the_table() -> None:
    script = resources.files("echat.serve").joinpath("page/thought-view.js").read_text(encoding="utf-8")
    kinds = re.findall(r'\["(\w+)", "(\w+)"\]', script[: script.index("];")])
    assert kinds == [(kind, LABEL_KINDS[kind].caption) for kind in SHOWN_KINDS]
