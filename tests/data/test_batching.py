from __future__ import annotations

import json
import random
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from echat.audio.augmentation import AugmentConfig
from echat.data.audio_loading import AudioLoader
from echat.data.batching import (
    PooledBatches,
    cut_batches,
    examples_once,
    fixed_batches,
    low_discrepancy_order,
)
from echat.data.collation import collate_dialogues, collate_speech
from echat.data.defects import DataError, DefectKind
from echat.data.examples import CachedTokenizer, DialogueBuilder
from echat.data.mixture import MixtureComponent, MixtureStream, SampledItem
from echat.data.sample import AudioRef, Sample
from echat.data.sources import SourceConfig, mixture, mixture_components
from echat.data.speech_examples import SpeechExample
from echat.dialogue.vocabulary import AUDIO, IGNORE, PAD
from echat.model.speech_encoder import EncoderConfig

ENCODER = EncoderConfig()


@dataclass(frozen=True)
class Piece:
    sizes: tuple[int, ...]


SIZES = st.tuples(st.integers(1, 200), st.integers(0, 90))


@given(st.lists(SIZES, min_size=1, max_size=60), st.integers(1, 600))
@settings(deadline=None)
def test_batches_stay_within_the_budget_and_lose_nothing(sizes, budget):
    batches = cut_batches([Piece(size) for size in sizes], budget, random.Random(0))
    assert sorted(piece.sizes for batch in batches for piece in batch) == sorted(sizes)
    for batch in batches:
        largest = [max(column) for column in zip(*(piece.sizes for piece in batch))]
        assert len(batch) == 1 or len(batch) * sum(largest) <= budget


@given(st.integers(1, 80), st.floats(0, 1, exclude_max=True), st.integers(1, 20))
def test_every_stretch_of_the_order_covers_all_lengths(count, start, width):
    order = low_discrepancy_order(count, start)
    assert sorted(order) == list(range(count))
    for begin in range(count - width + 1):
        ranks = sorted(order[begin : begin + width])
        holes = np.diff([-1, *ranks, count])
        assert holes.max() <= 4 * count / width + 3


@pytest.fixture
def build(tokenizer, vocabulary) -> DialogueBuilder:
    augment = AugmentConfig(speed=0.1, noise=0.5, time_masks=1)
    return DialogueBuilder(CachedTokenizer(tokenizer), vocabulary, AudioLoader(), ENCODER, augment=augment)


@pytest.fixture
def sources(manifest) -> list[SourceConfig]:
    return [
        SourceConfig(path=str(manifest), split="train", tasks={"asr": 2, "s2s_think_label": 1, "tts": 1}),
        SourceConfig(path=str(manifest), split="dev", tasks={"understand": 1}, weight=0.5),
    ]


def batches_of(sources, build, pool=10) -> PooledBatches:
    return PooledBatches(mixture(sources, 3), build, collate_dialogues, budget=500, pool=pool, seed=3)


def same(a, b) -> bool:
    return a.keys == b.keys and all(
        torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y
        for x, y in zip(vars(a).values(), vars(b).values())
    )


@pytest.mark.parametrize("stop", [0, 1, 2, 5, 9])
def test_the_batch_after_resume_is_the_one_that_would_have_come(sources, build, stop):
    whole = batches_of(sources, build)
    for _ in range(stop):
        whole.next()
    state = json.loads(json.dumps(whole.state_dict()))
    resumed = batches_of(sources, build)
    resumed.load_state_dict(state)
    assert all(same(resumed.next(), whole.next()) for _ in range(8))


def test_collating_keeps_every_row_as_it_was(sources, build):
    examples = examples_once(mixture_components(sources, 0), build, 3)
    batch = collate_dialogues(examples)
    assert batch.kinds.shape == batch.ids.shape == batch.labels.shape
    for row, example in enumerate(examples):
        size = len(example.ids)
        assert np.array_equal(batch.kinds[row, :size], example.kinds)
        assert np.array_equal(batch.labels[row, :size], example.labels)
        assert (batch.kinds[row, size:] == PAD).all() and (batch.labels[row, size:] == IGNORE).all()
        other = example.kinds != AUDIO
        assert np.array_equal(batch.ids[row, :size][other], example.ids[other])


def test_audio_positions_count_through_the_valid_frames_of_the_batch(sources, build):
    batch = collate_dialogues(examples_once(mixture_components(sources, 0), build, 3))
    rows = batch.ids[batch.kinds == AUDIO]
    assert rows.tolist() == list(range(sum(ENCODER.llm_frames(n) for n in batch.mel_lens.tolist())))


def test_batches_without_sound_have_no_clips(sources, build, samples):
    batch = collate_dialogues([build(SampledItem(samples[0], "tts", 0, 1))])
    assert batch.mel.shape[0] == 0 and batch.ctc_ids.shape[0] == 0


def test_a_bad_record_is_left_out_and_named(manifest, build, samples, caplog):
    bad = Sample(key="broken", audio=AudioRef("nowhere.wav"), text="a b")
    stream = MixtureStream([MixtureComponent("c", "asr", [samples[0], bad, samples[1]], 1.0, 0)])
    batches = PooledBatches(stream, build, collate_dialogues, budget=10_000, pool=3)
    assert sorted(batches.next().keys) == ["clip-000", "clip-001"]
    assert batches.defects.counts == {DefectKind.MISSING_AUDIO: 1} and "broken" in caplog.text


def test_nothing_usable_stops(build):
    stream = MixtureStream([MixtureComponent("c", "asr", [Sample(key="broken")], 1.0, 0)])
    with pytest.raises(DataError, match="none in 16 sampled items:\nunwanted: 16\n  c, record broken"):
        PooledBatches(stream, build, collate_dialogues, budget=100, pool=2).next()


def test_padding_is_small_with_a_pool(sources, build):
    batches = batches_of(sources, build, pool=96)
    assert np.mean([batches.next().padding for _ in range(10)]) < 0.06


def test_fixed_batches_are_the_same_each_time(sources, build):
    first, again = (
        fixed_batches(mixture_components(sources, 0), build, collate_dialogues, 500, limit=4)
        for _ in range(2)
    )
    assert len(first) > 1 and all(same(a, b) for a, b in zip(first, again))


def test_unknown_words_are_marked_in_a_speech_batch():
    mel = np.ones((12, 80), np.float32)
    batch = collate_speech(
        [
            SpeechExample("a", "ctc", mel, (3, 4), (0, 1, 2, 3)),
            SpeechExample("b", "ctc", mel[:5], None, (0,) * 4),
        ]
    )
    assert batch.target_lens.tolist() == [2, -1] and batch.mel_lens.tolist() == [12, 5]
    assert not batch.mel[1, 5:].any()


def test_a_missing_source_may_be_optional(manifest, tmp_path):
    absent = SourceConfig(path=str(tmp_path / "no.jsonl"), tasks={"asr": 1}, optional=True)
    assert mixture_components([absent], 0) == []
    with pytest.raises(DataError, match=r"no\.jsonl: expected a JSON-lines file, found nothing"):
        mixture_components([absent.model_copy(update={"optional": False})], 0)


def test_a_source_keeps_what_the_recipe_asks_for(manifest):
    short = SourceConfig(path=str(manifest), tasks={"asr": 1}, max_seconds=0.6)
    components = mixture_components([short], 0)
    assert 0 < len(components[0].samples) < 24 and all(s.seconds <= 0.6 for s in components[0].samples)
