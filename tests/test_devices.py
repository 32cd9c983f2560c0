"""Where and on how many threads it computes: what is asked for, or what is there."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

import echat
from echat.cli import engines
from echat.devices import present_device, present_devices


def test_auto_is_cuda_where_there_is_one(monkeypatch):
    assert present_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert present_device("auto") == torch.device("cpu")


@pytest.mark.parametrize("name", ["toaster", "cuda:99", "cuda:-1", "meta", "cpu,", "", "npu"])
def test_a_device_that_is_not_there_is_one_line_with_those_that_are(name):
    with pytest.raises(ValueError) as refused:
        present_device(name)
    message = str(refused.value)
    assert message.startswith(
        f"--device: expected auto or {' or '.join(present_devices())}, found {name!r} ("
    )
    assert len(message) < 220 and "\n" not in message and "privateuseone" not in message


def test_packed_weights_ask_for_the_cpu(monkeypatch):
    asked = []
    monkeypatch.setattr(echat, "load", lambda model, device: asked.append(device))
    monkeypatch.setattr(engines, "optimized", lambda engine, precision: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    engines.open_engine("x", "auto", precision="int8")
    assert asked == ["cpu"]


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("asked", "variable", "found"), [(3, "2", 3), (None, "", 1), (None, "2", 4), (1, "", 1)]
)
def test_threads_are_those_asked_for_or_of_the_variable_or_one(
    random_model, monkeypatch, threads, asked, variable, found
):
    torch.set_num_threads(4)  # stands for what torch read from the variable when the process began
    monkeypatch.setenv("OMP_NUM_THREADS", variable)
    echat.load(random_model, threads=asked)
    assert torch.get_num_threads() == found


def test_no_threads_are_refused(random_model):
    with pytest.raises(ValueError, match="threads: expected 1 or more, found 0"):
        echat.load(random_model, threads=0)
