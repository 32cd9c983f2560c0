"""Sources of any format: scanned or not they deliver the same, in the portions asked for, or a reason."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import fsspec
import pytest

from echat.data.audio_loading import AudioLoader
from echat.data.batching import PooledBatches, examples_once
from echat.data.defects import DataError, DefectKind
from echat.data.eligibility import FilterConfig
from echat.data.examples import CachedTokenizer, DialogueBuilder
from echat.data.mixture import MixtureComponent, SampledItem
from echat.data.sample import Turn
from echat.data.sources import SourceConfig, mixture, mixture_components
from echat.data.tools.conversion import ConversionConfig, convert
from echat.dialogue.vocabulary import AUDIO
from echat.model.speech_encoder import EncoderConfig

TASKS = {"asr": 2.0, "gender": 1.0, "s2s": 1.0}  # a third of the records name no gender


@pytest.fixture(scope="module")
def shards(manifest, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    convert(ConversionConfig(source=str(manifest), to="shard", out=str(folder), shard_size=5))
    return folder / "shards_list.txt"


@pytest.fixture
def build(tokenizer, vocabulary) -> DialogueBuilder:
    return DialogueBuilder(CachedTokenizer(tokenizer), vocabulary, AudioLoader(), EncoderConfig())


def delivered(config: SourceConfig, build, workers: int = 0) -> Counter[tuple[str, str]]:
    source = PooledBatches(mixture([config], 0, epochs=1), build, list, 300, 16, workers=workers)
    found = Counter((example.key, example.task) for batch in source for example in batch)
    source.close()
    return found


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("shuffle_block", [None, 4])
def test_shards_that_are_not_scanned_deliver_what_scanned_ones_do(
    manifest, shards, build, shuffle_block, workers
):
    expected = delivered(SourceConfig(path=str(manifest), tasks=TASKS), build)
    assert len(expected) == 24 + 16 + 24 and set(expected.values()) == {1}
    config = SourceConfig(path=str(shards), format="shard", tasks=TASKS, shuffle_block=shuffle_block)
    assert not config.scans and delivered(config, build, workers) == expected
    assert delivered(config.model_copy(update={"scan": True, "format": "auto"}), build) == expected


@pytest.mark.slow
def test_tasks_that_some_of_the_records_serve_get_their_share(shards, build):
    source = mixture([SourceConfig(path=str(shards), format="shard", tasks=TASKS)], 0)
    batches = PooledBatches(source, lambda item: replace(build(item), mels=()), list, 4000, 64)
    found: Counter[str] = Counter()
    while found.total() < 4000:
        found.update(example.task for example in batches.next())
    assert abs(found["gender"] / found.total() - 0.25) < 0.01
    assert set(batches.defects.counts) == {DefectKind.UNWANTED}


def test_an_object_store_is_read_like_a_disk(shards, build):
    store = fsspec.filesystem("memory")
    for path in shards.parent.glob("shard*"):
        if path.is_file():
            store.pipe_file(f"/bucket/{path.name}", path.read_bytes())
    config = SourceConfig(path="memory://bucket/shards_list.txt", format="shard", tasks={"asr": 1})
    assert config.block and set(delivered(config, build).values()) == {1}
    assert len(delivered(config, build)) == 24
    absent = config.model_copy(update={"path": "memory://bucket/none.txt", "optional": True})
    assert mixture_components([absent], 0) == []


def test_split_language_and_spoken_form_hold_without_a_scan(manifest, shards, build):
    wanted = {"tasks": {"asr": 1}, "split": "train", "max_seconds": 0.7}
    expected = delivered(SourceConfig(path=str(manifest), **wanted), build)
    assert 0 < len(expected) < 24
    assert delivered(SourceConfig(path=str(shards), format="shard", **wanted), build) == expected


def test_records_may_name_their_own_task(samples, build):
    own = [replace(sample, task=("asr", "s2t")[n % 2]) for n, sample in enumerate(samples)]
    component = MixtureComponent("c", None, [*own, replace(samples[0], key="untold")], 1.0, 0)
    assert Counter(e.task for e in examples_once([component], build)) == {"asr": 12, "s2t": 12}


def test_temperature_weighs_sources_by_size(manifest, shards):
    small = SourceConfig(path=str(manifest), tasks={"asr": 1}, split="dev")  # 4 of 24
    large = SourceConfig(path=str(shards), format="shard", tasks={"asr": 1}, weight=2)
    for temperature, ratio in ((None, 2.0), (1.0, 12.0), (2.0, 2 * 6**0.5)):
        first, second = mixture_components([small, large], 0, temperature)
        assert second.weight / first.weight == pytest.approx(ratio)


def test_each_turn_of_a_dialogue_is_a_sample_after_the_turns_before(samples, build):
    turns = [Turn(sample.audio, sample.text, "yes", (1, 2, 3) * 9) for sample in samples[1:3]]
    dialogue = replace(samples[0], history=tuple(turns))
    component = MixtureComponent("c", "s2s", [dialogue], 1.0, 0, every_turn=True)
    last, first, second = examples_once([component], build)
    assert [example.key for example in (first, second, last)] == ["clip-000#1", "clip-000#2", "clip-000"]
    assert [len(example.mels) for example in (first, second, last)] == [1, 2, 3]
    shared = int((second.kinds == AUDIO).nonzero()[0][-1])
    assert (last.ids[:shared] == second.ids[:shared]).all()
    labelled = MixtureComponent("c", "s2s_think_label", [dialogue], 1.0, 0, every_turn=True)
    assert [example.key for example in examples_once([labelled], build)] == ["clip-000"]


@pytest.mark.parametrize(
    ("change", "filters", "kind"),
    [
        ({}, {"min_seconds": 2.0}, DefectKind.TOO_SHORT),
        ({}, {"max_seconds": 0.2}, DefectKind.TOO_LONG),
        ({"speech_ids": (1, 2, 32)}, {}, DefectKind.SPEECH_ID_RANGE),
        ({"speech_ids": (1,)}, {}, DefectKind.SPEECH_TOO_SHORT),
        ({"speech_ids": (1,)}, {"speech_covers_text": False}, None),
        ({"reply": None}, {}, DefectKind.UNWANTED),
    ],
)
def test_what_is_filtered_has_a_kind(samples, build, change, filters, kind):
    build = replace(build, filters=FilterConfig(**filters))
    item = SampledItem(replace(samples[0], **change), "s2s", 0, 1)
    if kind is None:
        assert build(item).key == "clip-000"
        return
    with pytest.raises(DataError) as caught:
        build(item)
    assert caught.value.defect.kind is kind and caught.value.defect.key == "clip-000"
