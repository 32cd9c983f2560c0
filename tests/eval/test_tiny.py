"""The bundled evaluation with an engine whose outputs are true, and with one whose are not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from echat.audio.waveform import AudioError
from echat.data.sample import Sample
from echat.eval import judge
from echat.eval.benchmark import run
from echat.eval.benchmarks import tiny
from echat.eval.report import write_json, write_text


def measure(engine: Any, manifest: Path) -> tiny.TinyReport:
    report = run(tiny.Tiny(manifest=manifest), engine)
    assert isinstance(report, tiny.TinyReport)
    return report


def figures(report: tiny.TinyReport) -> dict[str, float | None]:
    return {measure.name: measure.value for measure in report.measures}


def test_truth_meets_every_bar_but_those_of_speech(engine: Any, manifest: Path, tmp_path: Path) -> None:
    json_out, card = tmp_path / "tiny.json", tmp_path / "card.md"
    report = measure(engine, manifest)
    write_json(json_out, report.as_dict())
    write_text(card, report.as_markdown())
    measured = [m for m in report.measures if "spoken" not in m.name and "memory" not in m.name]
    assert len(measured) == 13
    assert all(measure.ok is not False for measure in measured)
    assert json.loads(json_out.read_text(encoding="utf-8"))["measures"][0]["items"] == 2
    assert card.read_text(encoding="utf-8").count("| met |") >= 11
    assert "no token2wav" in report.notes[0]
    assert "no token2wav" in str(report)


def test_one_reply_for_both_cues_of_a_pair_fails_it(engine: Any, manifest: Path) -> None:
    engine.wrong = {"q1": "oh no, that is hard", "q4": "broken"}
    measured = figures(measure(engine, manifest))
    assert measured["reply fits (label thought)"] == pytest.approx(4 / 6)
    assert measured["pairs answered apart (label thought)"] == pytest.approx(1 / 3)
    assert measured["label thought parses"] == pytest.approx(5 / 6)
    assert measured["word errors, espeak"] == 0.5
    assert measured["word errors, natural"] == 0.0


def test_spoken_replies_are_compared_with_the_baseline_voice(
    engine: Any, manifest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.token2wav = object()
    monkeypatch.setattr(judge, "missing_programs", lambda: None)
    monkeypatch.setattr(judge, "transcribe", lambda waveform, rate: "happy birthday")
    monkeypatch.setattr(judge, "transcribe_baseline", lambda text: text)
    report = measure(engine, manifest)
    spoken = next(m for m in report.measures if m.name == "word errors of spoken replies")
    assert spoken.items == 6
    assert spoken.bar == pytest.approx(tiny.BASELINE_MARGIN)
    assert spoken.ok is False
    pace = next(m for m in report.measures if m.name.startswith("time to spoken reply"))
    seconds = [0.1 * (n + 2) + 0.5 for n in range(6)]
    assert pace.value == pytest.approx(sum(0.5 / s for s in seconds) / 6)
    assert not report.notes


def test_missing_programs_become_a_note(engine: Any, manifest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine.token2wav = object()
    monkeypatch.setattr(judge, "missing_programs", lambda: "install flite")
    report = measure(engine, manifest)
    assert report.notes == ["install flite"]
    assert figures(report)["word errors of spoken replies"] is None


def test_the_set_is_made_in_the_cache_and_measured(
    engine: Any, manifest: Path, corpus_writer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(tiny, "_require_synthesis", lambda: None)
    monkeypatch.setattr("echat.corpus.build.build_held_out", lambda folder, **_: corpus_writer(folder))
    assert run(tiny.Tiny(limit=2), engine).as_dict()["understanding"]["clips"] == 2
    assert tiny.held_out_manifest().parent.parent == tmp_path / "echat"


def test_a_sound_that_cannot_be_read_is_an_error(engine: Any, manifest: Path) -> None:
    (manifest.parent / "2.wav").write_text("not a sound")
    with pytest.raises(AudioError, match=r"2\.wav"):
        measure(engine, manifest)


@pytest.mark.parametrize(
    "extra,third",
    [
        ({"condition": "noise", "engine": "flite"}, "noise"),
        ({"noise": 12, "engine": "espeak-ng"}, "noise"),
        ({"engine": "espeak-ng"}, "espeak"),
        ({"engine": "flite"}, "natural"),
    ],
)
def test_thirds_of_the_set(extra: dict[str, Any], third: str) -> None:
    assert tiny.condition(Sample("k", extra=extra)) == third
