"""Files appear whole or not at all; loading leaves nothing missing and nothing over."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from echat.checkpoint import CheckpointError, atomic_path, load_strict, read_tensors, write_tensors


def test_reading_undoes_writing(tmp_path):
    tensors = {
        "weight": torch.randn(3, 4),
        "turned": torch.randn(3, 4).T,
        "count": torch.tensor(7),
        "ids": torch.arange(5),
    }
    write_tensors(tmp_path / "model.safetensors", tensors)
    read = read_tensors(tmp_path / "model.safetensors")
    assert read.keys() == tensors.keys()
    assert all(torch.equal(read[name], tensors[name]) for name in tensors)


def test_half_precision_casts_only_what_floats(tmp_path):
    write_tensors(tmp_path / "m.safetensors", {"w": torch.ones(2), "ids": torch.arange(2)}, torch.float16)
    read = read_tensors(tmp_path / "m.safetensors")
    assert read["w"].dtype == torch.float16 and read["ids"].dtype == torch.int64


def test_tied_weights_are_stored_under_each_name(tmp_path):
    tied = torch.randn(4)
    write_tensors(tmp_path / "m.safetensors", {"a": tied, "b": tied, "half": tied[:2]})
    read = read_tensors(tmp_path / "m.safetensors")
    assert (
        torch.equal(read["a"], tied) and torch.equal(read["b"], tied) and torch.equal(read["half"], tied[:2])
    )


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path):
    path = tmp_path / "note.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError), atomic_path(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_good_write_makes_parents_and_replaces(tmp_path):
    path = tmp_path / "deep" / "note.wav"
    for text in ("one", "two"):
        with atomic_path(path) as temporary:
            assert temporary.suffix == ".wav" and temporary.parent == path.parent
            temporary.write_text(text)
        assert path.read_text() == text
    assert list(path.parent.iterdir()) == [path]


def test_a_folder_is_replaced_whole(tmp_path):
    path = tmp_path / "model"
    for names in (["a", "b"], ["c"]):
        with atomic_path(path) as temporary:
            temporary.mkdir()
            for name in names:
                (temporary / name).touch()
    assert [file.name for file in path.iterdir()] == ["c"] and list(tmp_path.iterdir()) == [path]


def test_a_block_that_writes_nothing_changes_nothing(tmp_path):
    with atomic_path(tmp_path / "absent.wav"):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kept", [0, 5, 60])
def test_a_file_cut_short_is_named(tmp_path, kept):
    path = tmp_path / "m.safetensors"
    write_tensors(path, {"w": torch.ones(100)})
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match=rf"m.safetensors: expected a whole .* found {kept} bytes"):
        read_tensors(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="absent.safetensors.*found nothing"):
        read_tensors(tmp_path / "absent.safetensors")


def test_load_strict_copies_and_casts():
    source, target = nn.Linear(3, 2), nn.Linear(3, 2)
    load_strict(target, {name: value.double() for name, value in source.state_dict().items()}, "here")
    assert torch.equal(source.weight, target.weight) and target.weight.dtype == torch.float32


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        ({"weight": torch.ones(2, 3)}, r"1 missing \(bias\)"),
        ({"weight": torch.ones(2, 3), "bias": torch.ones(2), "x": torch.ones(1)}, r"1 left over \(x\)"),
        ({"weight": torch.ones(9, 3), "bias": torch.ones(2)}, r"weight expected \(2, 3\) found \(9, 3\)"),
    ],
)
def test_load_strict_names_each_misfit_and_changes_nothing(tensors, says):
    module = nn.Linear(3, 2)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with pytest.raises(CheckpointError, match=rf"here: .*{says}"):
        load_strict(module, tensors, "here")
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_load_strict_ignores_the_named_tensors():
    module = nn.Linear(3, 2)
    load_strict(module, {"weight": torch.ones(2, 3), "old.x": torch.ones(1)}, "here", ["bias", "old.*"])
    assert torch.equal(module.weight, torch.ones(2, 3))
