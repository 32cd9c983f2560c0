"""A file written tensor by tensor is the file written at once; empty modules take weights without a copy."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from echat import checkpoint
from echat.checkpoint import CheckpointError, KeyReport, assign_strict, read_tensors, stream_tensors

TENSORS = {
    "b.odd": torch.randn(5),
    "a.table": torch.randn(16, 8),
    "empty": torch.zeros(0, 3),
    "scalar": torch.tensor(2.5),
    "z.turned": torch.randn(8, 16).T,
}
SHAPES = {name: tensor.shape for name, tensor in TENSORS.items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("order", [sorted(TENSORS), sorted(TENSORS, reverse=True)])
@pytest.mark.parametrize("piece", [1, 7, 1 << 20])
def test_reading_undoes_streaming(tmp_path, monkeypatch, dtype, order, piece):
    monkeypatch.setattr(checkpoint, "PIECE", piece)
    path = tmp_path / "m.safetensors"
    stream_tensors(path, SHAPES, dtype, ((name, TENSORS[name]) for name in order))
    read = read_tensors(path)
    assert read.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert read[name].dtype == dtype and torch.equal(read[name], tensor.to(dtype))
        if tensor.numel() * dtype.itemsize % 64 == 0 and tensor.numel():
            assert read[name].data_ptr() % 64 == 0


def test_a_source_that_fails_leaves_nothing(tmp_path):
    def broken():
        yield "a.table", TENSORS["a.table"]
        raise RuntimeError

    with pytest.raises(RuntimeError):
        stream_tensors(tmp_path / "m.safetensors", SHAPES, torch.float32, broken())
    with pytest.raises(AssertionError, match="never came"):
        stream_tensors(tmp_path / "m.safetensors", SHAPES, torch.float32, iter(()))
    assert list(tmp_path.iterdir()) == []


def empty() -> nn.Linear:
    with torch.device("meta"):
        return nn.Linear(3, 2)


def test_assigned_weights_are_not_copied_unless_cast():
    tensors = nn.Linear(3, 2).state_dict()
    module, cast = empty(), empty()
    assign_strict(module, tensors, "here", torch.float32)
    assert module.weight.data_ptr() == tensors["weight"].data_ptr() and module.weight.requires_grad
    assign_strict(cast, tensors, "here", torch.bfloat16)
    assert torch.equal(cast.weight, tensors["weight"].bfloat16())


def test_assigning_is_strict():
    with pytest.raises(CheckpointError, match=r"here: .* 1 missing \(bias\); 1 left over \(x\); mend it"):
        assign_strict(empty(), {"weight": torch.ones(2, 3), "x": torch.ones(1)}, "here", mend="mend it")


def test_the_report_names_everything():
    own = {"a": torch.ones(2), "b": torch.ones(3), "c": torch.ones(1)}
    report = KeyReport.compare(own, {"a": torch.ones(2), "b": torch.ones(4), "d": torch.ones(1)})
    assert (report.missing, report.left_over, report.ok) == (("c",), ("d",), False)
    assert str(report) == "1 missing (c); 1 left over (d); 1 of another shape (b expected (3,) found (4,))"
    assert KeyReport.compare(own, own).ok
    assert str(KeyReport.compare(own, own)) == "0 missing, 0 left over, 0 of another shape"
