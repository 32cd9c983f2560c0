"""Results do not depend on the executor."""

from __future__ import annotations

from functools import partial

import pytest

from echat.data.defects import DataError
from echat.data.tools.check import CheckConfig, check
from echat.data.tools.conversion import ConversionConfig, convert
from echat.data.tools.executors import run_jobs


def square(limit: int, number: int) -> int:
    if number >= limit:
        raise DataError(f"expected below {limit}, found {number}")
    return number**2


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_results_come_in_order_and_errors_as_they_are(workers):
    assert list(run_jobs(partial(square, 9), 5, workers)) == [0, 1, 4, 9, 16]
    assert not list(run_jobs(partial(square, 9), 0, workers))
    with pytest.raises(DataError, match="expected below 3, found 3"):
        list(run_jobs(partial(square, 3), 5, workers))


@pytest.mark.slow
def test_ray_does_the_same(published, tmp_path):
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'echat-speech[ray]'")
    with pytest.raises(DataError, match="expected below 3, found 3"):
        list(run_jobs(partial(square, 3), 5, 1, "ray"))
    source = str(published / "edge" / "shards_list.txt")
    here = check(CheckConfig(source=source, job_size=2))
    assert check(CheckConfig(source=source, job_size=2), engine="ray").as_dict() == here.as_dict()
    for name in ("local", "ray"):
        config = ConversionConfig(source=source, out=str(tmp_path / name), to="shard", shard_size=2)
        convert(config, engine=name)
    files = {
        name: {
            path.name: path.read_bytes()
            for path in (tmp_path / name).iterdir()
            if path.suffix not in (".index",)  # hold the time of the file they are about
        }
        for name in ("local", "ray")
    }
    assert files["local"] == files["ray"] and len(files["ray"]) > 5
