"""Scores of a manifest, per set and over all, in the order and number of its clips."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from echat.audio.waveform import AudioError
from echat.data.formats.manifest import read_manifest
from echat.eval.benchmark import run
from echat.eval.benchmarks.understanding import UnderstandingBenchmark, UnderstandingReport
from echat.eval.report import write_json
from echat.eval.runner import EvalItem, Request, evenly_spaced, respond


def measure(engine: Any, *manifests: Path, limit: int | None = None) -> UnderstandingReport:
    report = run(UnderstandingBenchmark(manifest=list(manifests), limit=limit), engine)
    assert isinstance(report, UnderstandingReport)
    return report


def items_of(manifest: Path) -> list[EvalItem]:
    return [EvalItem(sample, (Request("understand"),)) for sample in read_manifest(manifest)]


def test_truth_scores_full_marks(engine: Any, manifest: Path, tmp_path: Path) -> None:
    out = tmp_path / "scores.json"
    report = measure(engine, manifest)
    write_json(out, report.as_dict())
    figures = json.loads(out.read_text(encoding="utf-8"))
    assert figures["overall"]["word_errors"] == {"rate": 0.0, "errors": 0, "words": 24, "texts": 6}
    assert figures["overall"]["labels"]["emotion"]["unweighted_recall"] == 1.0
    assert figures["overall"]["labels"]["sound_event"]["recalls"] == {"none": 1.0}
    assert set(figures["sets"]) == {"made"}
    assert "word errors" in str(report)


def test_a_missing_output_counts_as_wrong(engine: Any, manifest: Path) -> None:
    engine.wrong = {"q0": "nothing", "q3": "nothing"}
    report = measure(engine, manifest)
    assert report.overall.words.errors == 8
    emotion = report.overall.labels["emotion"]
    assert emotion.recalls["sad"] == 0.0
    assert emotion.accuracy == pytest.approx(4 / 6)
    assert "unreadable" in str(report)


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_batches_keep_the_order_of_the_manifest(engine: Any, manifest: Path, batch_size: int) -> None:
    samples = read_manifest(manifest)
    responses = respond(engine, items_of(manifest), batch_size=batch_size).responses
    assert [one.item.sample.key for one in responses] == [sample.key for sample in samples]
    assert [one.output.labels for one in responses] == [sample.labels for sample in samples]
    assert max(engine.batch_sizes) == min(batch_size, 6)


def test_limit_is_spread_over_the_manifest(engine: Any, manifest: Path) -> None:
    assert measure(engine, manifest, limit=3).overall.clips == 3
    assert evenly_spaced(range(6), 3) == [0, 2, 4]
    assert evenly_spaced(range(2), 3) == [0, 1]


def test_unusable_sounds_are_counted_or_raised(engine: Any, manifest: Path) -> None:
    (manifest.parent / "2.wav").write_text("not a sound")
    report = measure(engine, manifest)
    assert report.overall.clips == 5
    assert list(report.skipped) == ["q2"]
    assert "1 clips skipped" in str(report)
    with pytest.raises(AudioError, match=r"2\.wav"):
        respond(engine, items_of(manifest), skip=False)


def test_manifests_in_folders_of_one_name_stay_apart(engine: Any, manifest: Path, corpus_writer: Any) -> None:
    second = corpus_writer(manifest.parent.parent / "again" / "made")
    report = measure(engine, manifest, second)
    assert set(report.sets) == {str(manifest), str(second)}
    assert report.overall.clips == 12
