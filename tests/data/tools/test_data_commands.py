"""The commands that inspect data: what they print, write and end with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

import echat
from echat.cli import app
from echat.data.formats.corpus import open_corpus

SHIPPED = Path(echat.__file__).parent / "models" / "echat-tiny"
needs_shipped_model = pytest.mark.skipif(not SHIPPED.is_dir(), reason="the embedded model is not there yet")


def run(*arguments: object):
    return CliRunner().invoke(app, ["data", *map(str, arguments)])


@pytest.fixture
def spoilt(published) -> Path:
    """The published raw list with a bad line more."""
    path = published / "raw" / "data.list"
    path.write_text(path.read_text() + '{"key": "spoilt", "txt": "a", "wav": "nowhere.wav"}\n')
    return path


def test_check_ends_with_0_without_defects_and_with_2_where_it_cannot_look(published, tmp_path):
    result = run("check", published / "shard")
    assert result.exit_code == 0 and "records: 6, all good" in result.stdout, result.output
    assert "defects: none" in result.stdout and "█" in result.stdout
    result = run("check", tmp_path / "nowhere")
    assert result.exit_code == 2 and result.stdout == "" and "expected a list" in result.stderr


def test_check_ends_with_1_and_writes_report_pictures_and_a_clean_list(spoilt, tmp_path):
    pytest.importorskip("matplotlib")
    options = ("--json", tmp_path / "report.json", "--plots", tmp_path / "plots", "--fix", tmp_path / "clean")
    result = run("check", spoilt, *options)
    assert result.exit_code == 1, result.output
    assert "records: 7, 6 good" in result.stdout and "line 7, record spoilt" in result.stdout
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["defects"]["counts"] == {"missing-audio": 1} and report["totals"]["records"] == 6
    assert (tmp_path / "plots" / "seconds_heard.png").read_bytes().startswith(b"\x89PNG")
    assert len(open_corpus(tmp_path / "clean", within="/")) == 6
    assert run("check", tmp_path / "clean", "--within", "/").exit_code == 0


def test_check_for_programs(spoilt):
    result = run("check", spoilt, "--json", "-", "--strict")
    assert result.exit_code == 1 and json.loads(result.stdout)["defects"]["counts"] == {"missing-audio": 1}
    assert run("check", spoilt, "--strict", "--fix", "out").exit_code == 2


@needs_shipped_model
def test_show(published, tmp_path):
    result = run("show", published / "shard", "fx_s2s_hist_006", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    learned = [line for line in result.stdout.splitlines() if "▶ " in line]
    assert len(learned) == 2 and "[speech]" in learned[1] and "turn 1" in result.stdout
    result = run("show", published / "shard", "fx_s2s_hist_006", "--json")
    shown = json.loads(result.stdout)
    assert 0 < shown["sequence"]["learned"] < shown["sequence"]["positions"]
    result = run("show", published / "shard", "fx_s2s_hist_06")
    assert result.exit_code == 2 and "did you mean 'fx_s2s_hist_006'" in result.stderr


@needs_shipped_model
def test_tokenize(manifest, tmp_path):
    result = run("tokenize", manifest, "--out", tmp_path / "out", "--tokenizer", "echat-tiny", "--again")
    assert result.exit_code == 0 and "24 records as shard" in result.stdout, result.output
    result = run("tokenize", manifest, "--out", tmp_path / "out", "--tokenizer", "nothing")
    assert result.exit_code == 2 and "nothing" in result.stderr


def test_convert_ends_as_check_does(spoilt, published, tmp_path):
    """0 without defects, 1 with some (the good are written), 1 without a record, 2 where it cannot begin."""
    to = ("--to", "shard", "--out")
    assert run("convert", published / "shard", *to, tmp_path / "a").exit_code == 0
    result = run("convert", spoilt, *to, tmp_path / "b")
    assert result.exit_code == 1 and "6 records as shard, 1 defects" in result.stdout
    assert len(open_corpus(tmp_path / "b")) == 6
    (tmp_path / "empty.jsonl").write_text("[]")
    result = run("convert", tmp_path / "empty.jsonl", *to, tmp_path / "c")
    assert result.exit_code == 1 and "expected records" in result.stderr
    assert run("check", tmp_path / "empty.jsonl").exit_code == 1
    assert run("convert", tmp_path / "nowhere", *to, tmp_path / "d").exit_code == 2


@pytest.mark.parametrize("content", ["", "{", "[]", '{"records": 1}', "\xff"])
@pytest.mark.parametrize("name", ["conversion.json", "shards_000000000.tar.finished"])
def test_a_damaged_note_of_a_conversion_is_named(published, tmp_path, name, content):
    command = ("convert", published / "shard", "--to", "shard", "--out", tmp_path / "out")
    assert run(*command).exit_code == 0
    (tmp_path / "out" / name).write_bytes(content.encode("latin-1"))
    failed = run(*command)
    assert failed.exit_code == 2 and str(tmp_path / "out" / name) in failed.stderr
    assert failed.stderr.count("\n") == 1
    (tmp_path / "out" / name).unlink()
    assert run(*command).exit_code == 0


def test_bounds_that_no_sound_meets_are_refused(published):
    result = run("check", published / "shard", "--min-seconds", "9", "--max-seconds", "1")
    assert result.exit_code == 2 and "min_seconds <= max_seconds" in result.stderr


def test_a_fix_that_was_killed_leaves_nothing_behind_after_the_next(spoilt, tmp_path):
    for name in (".0123abcd.data.list", "parts/.0123abcd.000000000.list"):
        (tmp_path / "clean" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "clean" / name).touch()
    assert run("check", spoilt, "--fix", tmp_path / "clean").exit_code == 1
    assert sorted(path.name for path in (tmp_path / "clean").iterdir()) == ["data.list", "data.list.sha256"]
