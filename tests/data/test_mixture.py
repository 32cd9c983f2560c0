from __future__ import annotations

from collections import Counter
from itertools import islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from echat.data.defects import DataError
from echat.data.mixture import MixtureComponent, MixtureStream
from echat.data.sample import Sample


def stream(weights=(5.0, 1.0, 2.5), sizes=(7, 3, 20), seed=1) -> MixtureStream:
    corpora = [[Sample(key=f"{n}-{i}") for i in range(size)] for n, size in enumerate(sizes)]
    return MixtureStream(
        [MixtureComponent(f"corpus{n}", "asr", c, w, seed) for n, (c, w) in enumerate(zip(corpora, weights))]
    )


def names(items) -> list[tuple[str, int]]:
    return [(item.sample.key, item.seed) for item in items]


@given(st.integers(0, 300), st.integers(0, 2**31))
@settings(max_examples=25, deadline=None)
def test_resumed_equals_uninterrupted(stop, seed):
    whole = stream(seed=seed)
    list(islice(whole, stop))
    state = whole.state_dict()
    resumed = stream(seed=seed)
    resumed.load_state_dict(state)
    assert names(islice(resumed, 40)) == names(islice(whole, 40))


def test_shares_are_kept_to_the_sample():
    count = 20_000
    sampled = Counter(item.sample.key.split("-")[0] for item in islice(stream(), count))
    for corpus, weight in zip("012", (5.0, 1.0, 2.5)):
        assert abs(sampled[corpus] - count * weight / 8.5) <= 1


def test_each_epoch_holds_every_sample_once_in_a_new_order():
    one = stream(weights=(1.0,), sizes=(9,))
    epochs = [[item.sample.key for item in islice(one, 9)] for _ in range(3)]
    assert all(sorted(epoch) == [f"0-{i}" for i in range(9)] for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_every_sampled_item_has_a_random_stream_of_its_own():
    items = list(islice(stream(), 300))
    assert len({item.seed for item in items}) == 300


def test_another_seed_gives_another_order():
    assert names(islice(stream(seed=1), 30)) != names(islice(stream(seed=2), 30))


def test_resume_with_other_sources_is_refused():
    with pytest.raises(DataError, match="resume with the recipe the run began with"):
        stream().load_state_dict({"corpus9:asr": 3})


def test_a_task_nobody_can_serve_is_refused():
    with pytest.raises(DataError, match="source real, task emotion: no record"):
        MixtureComponent("real", "emotion", [], 1.0, 0)
