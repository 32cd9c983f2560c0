from __future__ import annotations

import json
from pathlib import Path

import pytest

from echat.data.defects import DataError
from echat.data.formats.audio_folder import AudioFolder
from echat.data.formats.manifest import read_manifest, sample_of
from echat.dialogue.labels import Labels


def test_a_row_keeps_everything_it_says(manifest):
    sample = read_manifest(manifest)[1]
    assert sample.key == "clip-001" and Path(sample.audio.path).is_file()
    assert sample.labels == Labels("old", "male", "sad", "cough")
    assert len(sample.speech_ids) == 40
    assert sample.extra == {"situation": "keys"}


def test_words_without_event_mean_no_event_and_no_label_stays_unknown(manifest):
    first, third = read_manifest(manifest)[0], read_manifest(manifest)[2]
    assert first.labels.sound_event == "none"
    assert third.labels.gender is None


def test_split_keeps_its_rows_only(manifest):
    assert [s.key for s in read_manifest(manifest, "dev")] == ["clip-000", "clip-006", "clip-012", "clip-018"]
    with pytest.raises(DataError, match="split nowhere"):
        read_manifest(manifest, "nowhere")


def test_the_sidecar_of_speech_ids_wins(manifest, tmp_path):
    copy = tmp_path / "manifest.jsonl"
    copy.write_bytes(manifest.read_bytes())
    (tmp_path / "speech_ids.jsonl").write_text('{"key": "clip-002", "speech_ids": [4, 2]}\n')
    read = {sample.key: sample.speech_ids for sample in read_manifest(copy)}
    assert read["clip-002"] == (4, 2) and len(read["clip-001"]) == 40


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ({"text": "a"}, "field key"),
        ({"key": "k", "speech_ids": "12"}, "record k: field speech_ids: expected a list"),
        ({"key": "k", "speech_ids": [1, -3]}, "found -3"),
        ({"key": "k", "text": 5}, "field text: expected text, found 5"),
    ],
)
def test_a_bad_row_is_named_with_its_line(tmp_path, row, complaint):
    path = tmp_path / "manifest.jsonl"
    path.write_text('{"key": "fine"}\n\n' + json.dumps(row) + "\n")
    with pytest.raises(DataError, match=rf"manifest.jsonl, line 3.*{complaint}"):
        read_manifest(path)


def test_broken_json_is_named_with_its_line(tmp_path):
    path = tmp_path / "manifest.jsonl"
    path.write_text('{"key": "fine"}\n{"key": \n')
    with pytest.raises(DataError, match="line 2: expected a JSON object"):
        read_manifest(path)


def test_a_reading_voice_speaks_its_text():
    row = {"key": "a", "audio": "a.wav", "text": "good morning", "speech_ids": ["1", "2"]}
    sample = sample_of(row, AudioFolder("corpus"))
    assert sample.speech_ids == (1, 2) and sample.reply is None and sample.audio.path == "corpus/a.wav"
