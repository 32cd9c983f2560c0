"""A list reads sound below declared folders alone, and nothing but regular files that are sound."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
import soundfile
from typer.testing import CliRunner

from echat.cli import app
from echat.data.defects import DefectKind
from echat.data.formats.audio_folder import saved_roots
from echat.data.formats.corpus import open_corpus
from echat.data.sources import SourceConfig, open_source
from echat.data.tabular.importer import ImportConfig, import_corpus
from echat.data.tools.check import CheckConfig, check
from echat.data.tools.conversion import ConversionConfig, convert


def wav() -> bytes:
    stream = io.BytesIO()
    soundfile.write(stream, np.full(4000, 0.1), 8000, format="WAV", subtype="PCM_16")
    return stream.getvalue()


@pytest.fixture
def private(tmp_path) -> Path:
    """A folder that nobody declares."""
    folder = tmp_path / "private"
    folder.mkdir()
    (folder / "voice.wav").write_bytes(wav())
    (folder / "secrets.txt").write_text("token = 5\n")
    return folder


def manifest(folder: Path, *audio: object) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "a.wav").write_bytes(wav())
    rows = [{"key": f"k{n}", "audio": name, "text": "hi"} for n, name in enumerate(("a.wav", *audio))]
    (folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "manifest.jsonl"


@pytest.mark.parametrize(
    "name",
    ["{}", "file://{}", "FILE://{}", "local://{}", "../private/voice.wav", "link.wav", "folder/voice.wav"],
)
def test_sound_outside_is_refused_by_record_with_the_remedy(tmp_path, private, name):
    source = manifest(tmp_path / "set", name.format(private / "voice.wav"))
    (tmp_path / "set" / "link.wav").symlink_to(private / "voice.wav")
    (tmp_path / "set" / "folder").symlink_to(private)
    found = check(CheckConfig(source=str(source)))
    assert found.defects.counts == {DefectKind.PATH_ESCAPE: 1} and found.totals.records == 1
    (defect,) = found.defects
    assert f"--within {private}" in defect.reason and defect.place == "line 2"
    out = convert(ConversionConfig(source=str(source), out=str(tmp_path / "out"), to="shard", task="asr"))
    assert out.records == 1 and b"k1" not in (tmp_path / "out" / "shards_000000000.tar").read_bytes()
    assert not check(CheckConfig(source=str(source), within=str(private))).defects
    assert not check(CheckConfig(source=str(source), within=(str(tmp_path / "x"), "/"))).defects


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:1/a.wav", "s3://b/a.wav", "ftp://h/a.wav", "zip://x::file:///a"]
)
def test_no_url_outside_is_opened(tmp_path, url):
    found = check(CheckConfig(source=str(manifest(tmp_path / "set", url)), within="/"))
    assert found.defects.counts == {DefectKind.PATH_ESCAPE: 1} and "--within" in str(found.defects)


def test_a_member_of_a_file_outside_is_refused(tmp_path, private):
    place = {"path": str(private / "secrets.txt"), "offset": 0, "size": 5}
    assert check(CheckConfig(source=str(manifest(tmp_path / "set", place)))).defects.counts == {
        DefectKind.PATH_ESCAPE: 1
    }


@pytest.mark.parametrize("special", ["pipe", "/dev/zero", "/proc/self/environ", "text", "empty"])
def test_only_regular_files_of_sound_are_copied(tmp_path, private, special):
    """Allowed by the option, and still: a pipe is never waited for, what is no sound is not copied."""
    os.mkfifo(private / "pipe")
    (private / "text").write_text("token = 5\n")
    (private / "empty").touch()
    source = manifest(tmp_path / "set", str(private / special))
    for audio in ("keep", "flac"):
        config = ConversionConfig(
            source=str(source), out=str(tmp_path / audio), to="shard", task="asr", within="/", audio=audio
        )
        report = convert(config)
        assert (report.records, report.defects.total) == (1, 1), report.defects
        assert b"token" not in (tmp_path / audio / "shards_000000000.tar").read_bytes()
    assert check(CheckConfig(source=str(source), within="/")).bad == [1]


def test_a_list_or_tar_that_is_a_pipe_is_refused_at_once(tmp_path):
    for name in ("list.jsonl", "a.tar"):
        os.mkfifo(tmp_path / name)
    (tmp_path / "shards_list.txt").write_text("a.tar\n")
    found = check(CheckConfig(source=str(tmp_path / "shards_list.txt")))
    assert found.defects.counts == {DefectKind.UNREADABLE_FILE: 1} and "a pipe" in str(found.defects)
    failed = CliRunner().invoke(app, ["data", "check", str(tmp_path / "list.jsonl")])
    assert failed.exit_code == 2 and failed.stderr.count("\n") == 1


def test_lists_that_echat_wrote_are_read_where_their_sound_lies(tmp_path, private):
    """Converted and imported lists name sound where it lies; their user need not say it again."""
    table = tmp_path / "tables" / "t.csv"
    table.parent.mkdir()
    table.write_text(f"path,text\n{private}/voice.wav,hi\n")
    count, report = import_corpus(ImportConfig(source=str(table), out=str(tmp_path / "m")))
    assert count == 0 and report.counts == {DefectKind.PATH_ESCAPE: 1}
    config = ImportConfig(source=str(table), out=str(tmp_path / "m"), audio_root=str(private))
    assert import_corpus(config)[0] == 1
    assert saved_roots(tmp_path / "m") == (str(private),)
    for step, to in enumerate(("manifest", "raw")):
        source = tmp_path / ("m" if not step else "manifest")
        report = convert(ConversionConfig(source=str(source), out=str(tmp_path / to), to=to))
        assert report.records == 1 and not report.defects
        assert open_corpus(tmp_path / to)[0].audio.path == str(private / "voice.wav")
    moved = tmp_path / "moved"
    (tmp_path / "raw").rename(moved)  # a note holds for the place it was made for: anybody can write a list
    assert check(CheckConfig(source=str(moved))).defects.counts == {DefectKind.PATH_ESCAPE: 1}


def test_words_beside_a_sound_are_not_read_through_a_link(tmp_path, private):
    manifest(tmp_path / "set")
    (tmp_path / "set" / "manifest.jsonl").unlink()
    (tmp_path / "set" / "a.txt").symlink_to(private / "secrets.txt")
    assert import_corpus(ImportConfig(source=str(tmp_path / "set"), out=str(tmp_path / "m")))[0] == 1
    assert "token" not in (tmp_path / "m" / "manifest.jsonl").read_text()


def test_notes_lie_with_the_user_and_are_taken_back(tmp_path, private):
    source = manifest(tmp_path / "set", str(private / "voice.wav"))
    config = ConversionConfig(source=str(source), out=str(tmp_path / "o"), to="raw", within=str(private))
    assert convert(config).records == 2
    inside = {path.name for path in (tmp_path / "o").rglob("*") if "roots" in path.name}
    assert not inside and set(saved_roots(tmp_path / "o")) == {str(tmp_path / "set"), str(private)}


def test_a_recipe_trusts_local_folders_unless_it_names_some(tmp_path, private):
    source = manifest(tmp_path / "set", str(private / "voice.wav"))
    assert open_source(SourceConfig(path=str(source)))[1].audio.path == str(private / "voice.wav")
    with pytest.raises(ValueError, match="expected a path inside"):
        open_source(SourceConfig(path=str(source), within=(str(tmp_path / "set"),)))[1]
