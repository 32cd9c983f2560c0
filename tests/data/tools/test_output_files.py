"""No result replaces what it is made from, by whatever name the two are called."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from echat.audio.waveform import write
from echat.cli import app
from echat.data.defects import DataError
from echat.data.sample import AudioRef, Sample
from echat.data.tools.inspection import write_sounds


def run(*arguments: object):
    return CliRunner().invoke(app, ["data", *map(str, arguments)])


def digests(folder: Path) -> dict[str, str]:
    """Of every file but the indexes, which may be made."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and not path.name.endswith(".index")
    }


def names_of(folder: Path, tmp_path: Path, monkeypatch):
    """The folder under other names."""
    (tmp_path / "link").symlink_to(folder)
    monkeypatch.chdir(folder.parent)
    return [folder, f"{folder}/.", folder.name, f"./x/../{folder.name}", tmp_path / "link"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["raw", "shard", "combine"])
def test_a_corpus_is_not_written_over_itself(published, tmp_path, monkeypatch, kind):
    source = published / kind
    before = digests(source)
    for out in names_of(source, tmp_path, monkeypatch):
        for command in (
            ("check", source, "--fix", out),
            ("convert", source, "--to", "manifest", "--output", out),
            ("convert", source, "--to", "shard", "--output", out),
            ("convert", source, "--to", kind, "--output", out),
            ("tokenize", source, "--tokenizer", "echat-tiny", "--output", out),
        ):
            failed = run(*command)
            assert failed.exit_code == 2, (command, failed.output)
            assert "apart from the source" in failed.stderr and failed.stderr.count("\n") == 1
    assert digests(source) == before


def test_files_that_a_result_writes_in_its_own_folders_are_kept_apart(published, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(published / "shard", out / "tars")
    for source in (out / "tars", next((out / "tars").glob("*.tar"))):
        assert run("convert", source, "--to", "combine", "--output", out).exit_code == 2
    assert not (out / "conversion.json").exists()


def test_a_hard_link_is_the_source(published, tmp_path):
    source, out = published / "raw" / "data.list", tmp_path / "out"
    out.mkdir()
    os.link(source, out / "data.list")
    before = digests(out)
    assert run("convert", source, "--to", "raw", "--output", out).exit_code == 2
    assert run("check", source, "--fix", out).exit_code == 2
    assert run("check", source, "--output", out / "data.list").exit_code == 2
    assert digests(out) == before


def test_import_refuses_its_own_table_and_no_other_place(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "manifest.jsonl").write_text(json.dumps({"key": "a", "text": "hi", "extra": 1}) + "\n")
    (folder / "t.csv").write_text("id,text\nb,you\n")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "manifest.jsonl").symlink_to(folder / "manifest.jsonl")
    before = digests(tmp_path)
    for source, out in ((folder, folder), (folder / "manifest.jsonl", tmp_path / "other")):
        failed = run("import", source, "--output", out)
        assert failed.exit_code == 2 and "itself" in failed.stderr
    assert digests(tmp_path) == before
    assert run("import", folder / "t.csv", "--output", tmp_path / "new").exit_code == 0


def test_a_result_inside_or_beside_the_source_is_written(published, tmp_path):
    source = published / "raw"
    before = digests(source)
    assert run("convert", source, "--to", "manifest", "--output", source / "ours").exit_code == 0
    assert run("check", source, "--fix", published / "clean").exit_code == 0
    after = digests(source)
    assert {name: after[name] for name in before} == before


def test_sounds_that_are_shown_do_not_replace_themselves(tmp_path):
    """One second of tone at another rate, under the name that its copy would get."""
    write(tmp_path / "k.question.wav", np.full(8000, 0.1, np.float32), 8000)
    before = digests(tmp_path)
    sample = Sample("k", audio=AudioRef(str(tmp_path / "k.question.wav")))
    with pytest.raises(DataError, match="itself"):
        write_sounds(sample, tmp_path)
    assert digests(tmp_path) == before


def test_an_import_without_a_record_leaves_an_earlier_one(tmp_path):
    (tmp_path / "t.csv").write_text("path,text\na.wav,hi\n")
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "manifest.jsonl").write_text("{}\n")
    failed = run("import", tmp_path / "t.csv", "--output", tmp_path / "m")
    assert failed.exit_code == 1 and "--audio-root" in failed.stderr
    assert (tmp_path / "m" / "manifest.jsonl").read_text() == "{}\n"
