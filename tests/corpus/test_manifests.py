"""Manifests in JSON lines: reading undoes writing; an incomplete last line is ignored, or removed."""

from __future__ import annotations

from pathlib import Path

from echat.corpus.manifests import read_growing_jsonl, read_jsonl, write_jsonl

ROWS = [{"key": "a", "text": "naïve"}, {"key": "b", "text": None}]


def test_reading_undoes_writing(tmp_path: Path) -> None:
    path = tmp_path / "new" / "manifest.jsonl"
    assert read_jsonl(path) == read_growing_jsonl(path) == []
    assert write_jsonl(path, iter(ROWS)) == 2
    assert read_jsonl(path) == read_growing_jsonl(path) == ROWS


def test_only_a_growing_manifest_may_end_in_an_incomplete_line(tmp_path: Path) -> None:
    path = tmp_path / "manifest.jsonl"
    write_jsonl(path, ROWS)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    assert read_jsonl(path) == ROWS and read_growing_jsonl(path) == ROWS[:1]
    path.write_bytes(whole + b'{"key": "\xc3')
    assert read_growing_jsonl(path) == ROWS and path.read_bytes() != whole
    assert read_growing_jsonl(path, repair=True) == ROWS and path.read_bytes() == whole
