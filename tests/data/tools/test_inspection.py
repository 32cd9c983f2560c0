"""The inspected sequence of a record is its training example."""

from __future__ import annotations

import numpy as np
import pytest
import soundfile

from echat.data.audio_loading import AudioLoader
from echat.data.defects import DataError
from echat.data.examples import CachedTokenizer, DialogueBuilder
from echat.data.formats.corpus import open_corpus
from echat.data.mixture import SampledItem
from echat.data.tools.inspection import eligible_tasks, facts, sequence, write_sounds
from echat.dialogue.vocabulary import IGNORE
from echat.model.speech_encoder import EncoderConfig


@pytest.mark.parametrize("task", ["asr", "s2s_think_label", "s2s_stream", "tts", "emotion"])
def test_stretches_are_the_positions_of_the_example(manifest, tokenizer, vocabulary, task):
    sample = open_corpus(manifest, within="/")[4]
    name, stretches = sequence(sample, task, tokenizer, vocabulary, EncoderConfig(), "echat")
    build = DialogueBuilder(CachedTokenizer(tokenizer), vocabulary, AudioLoader(), EncoderConfig())
    example = build(SampledItem(sample, task, 0, 0))
    begins = np.cumsum([0, *(stretch.count for stretch in stretches)])
    assert name == task and [stretch.begin for stretch in stretches] == begins[:-1].tolist()
    assert begins[-1] == len(example.ids)
    learned = np.repeat([stretch.learn for stretch in stretches], [stretch.count for stretch in stretches])
    assert learned[1:].tolist() == (example.labels[:-1] != IGNORE).tolist()  # a position predicts the next


def test_all_that_is_known_is_shown(published):
    corpus = open_corpus(published / "shard")
    sample = corpus[corpus.find("fx_s2s_hist_006")]
    shown = facts(sample)
    assert shown["turn 1"]["reply"] and shown["serves"] == sample.task and "member" in shown["sound"]


@pytest.mark.parametrize("kind", ["raw", "shard", "combine"])
def test_records_are_found_by_key_in_every_format(published, kind):
    corpus = open_corpus(published / kind)
    for number, sample in enumerate(corpus):
        assert corpus.find(sample.key) == number
    with pytest.raises(DataError, match="did you mean 'fx_tts_004'"):
        corpus.find("fx_tts_04")


def test_sounds_come_with_spectrograms(published, tmp_path):
    pytest.importorskip("matplotlib")
    corpus = open_corpus(published / "shard")
    written = write_sounds(corpus[corpus.find("fx_s2s_hist_006")], tmp_path / "out")
    assert {path.suffix for path in written} == {".wav", ".png"} and len(written) >= 4
    for path in written:
        if path.suffix == ".wav":
            assert soundfile.info(path).samplerate == 16000 and soundfile.info(path).frames > 1000
        else:
            assert path.read_bytes().startswith(b"\x89PNG")


def test_a_task_that_the_record_cannot_serve_is_refused(manifest, tokenizer, vocabulary):
    sample = open_corpus(manifest, within="/")[0]
    assert "asr_chat" in eligible_tasks(sample) and "asr_timestamps" not in eligible_tasks(sample)
    with pytest.raises(DataError, match="task asr_timestamps: .* found a record for asr, "):
        sequence(sample, "asr_timestamps", tokenizer, vocabulary, EncoderConfig(), "echat")
