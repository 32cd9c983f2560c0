"""Model files from anywhere: odd ones are refused in one line that names them, quickly, and run no code."""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

import echat
from echat.checkpoint import CheckpointError
from echat.cli import main
from echat.dialogue.tasks import DecodingDefaults
from echat.dialogue.turns import ask
from echat.infer.loading import find_model
from echat.safe_loading import build_on_meta, load_weights_only, read_json, read_torch_file

MANY = 100_000_000


@pytest.fixture
def folder(tmp_path) -> Path:
    """A copy of the shipped model, to spoil."""
    return Path(shutil.copytree(find_model("echat-tiny"), tmp_path / "model"))


def change(path: Path, key: str, value: Any) -> None:
    """Set `a.b.c` in a YAML file."""
    values = yaml.safe_load(path.read_text())
    *parts, last = key.split(".")
    inside = values
    for part in parts:
        inside = inside[part]
    inside[last] = value
    path.write_text(yaml.safe_dump(values))


def refusal(folder: Path, capsys) -> str:
    """What the command line says about a model folder: one line that names a file of it."""
    with pytest.raises(SystemExit) as left:
        main(["reply", str(folder / "examples" / "question.wav"), "--model", str(folder)])
    said = capsys.readouterr().err
    assert left.value.code == 2 and said.count("\n") == 1 and len(said) < 2000, said[:3000]
    assert str(folder) in said and "unexpected" not in said
    return said


SIZES = [
    ("config.yaml", "model.encoder.blocks", MANY),
    ("config.yaml", "model.adapter.blocks", MANY),
    ("config.yaml", "model.llm.layers", MANY),
    ("config.yaml", "model.encoder.blocks", 900),
    ("config.yaml", "model.encoder.blocks", 0),
    ("config.yaml", "model.encoder.heads", 0),
    ("config.yaml", "model.encoder.heads", 7),
    ("config.yaml", "model.llm.heads", 0),
    ("config.yaml", "model.llm.heads", 5),
    ("config.yaml", "model.llm.dim", 10**12),
    ("config.yaml", "model.llm.dim", -256),
    ("config.yaml", "model.llm.vocab_size", 10**18),
    ("config.yaml", "model.encoder.ffn", 10**30),
    ("config.yaml", "model.encoder.n_mels", 0),
    ("config.yaml", "model.encoder.max_frames", 10**12),
    ("config.yaml", "model.adapter.max_frames", MANY),
    ("config.yaml", "model.speech_codec_size", MANY),
    ("config.yaml", "model.encoder.conv_kernel", MANY),
    ("config.yaml", "model.encoder.blocks", "many"),
    ("token2wav/config.yaml", "flow.encoder.num_blocks", MANY),
    ("token2wav/config.yaml", "flow.estimator.num_mid_blocks", MANY),
    ("token2wav/config.yaml", "flow.estimator.n_blocks", MANY),
    ("token2wav/config.yaml", "flow.vocab_size", 10**15),
    ("token2wav/config.yaml", "vocoder.base_channels", 2**40),
    ("token2wav/config.yaml", "vocoder.istft_n_fft", 10**12),
]


@pytest.mark.parametrize(("file", "key", "value"), SIZES)
def test_a_configuration_larger_than_its_weights_is_refused(folder, capsys, file, key, value):
    change(folder / file, key, value)
    refusal(folder, capsys)


@pytest.mark.parametrize("key", ["blocks_before", "blocks_after", "hidden"])
def test_a_speech_tokenizer_larger_than_its_weights_is_refused(folder, key):
    from echat.token2wav.speech_tokenizer import SpeechTokenizer

    change(folder / "speech_tokenizer" / "config.yaml", key, MANY)
    with pytest.raises(CheckpointError, match="model.safetensors: expected"):
        SpeechTokenizer.from_folder(folder / "speech_tokenizer")


def bomb_of_aliases() -> str:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    return "\n".join([*lines, "name: *a11", "kind: echat"])


TEXTS: dict[str, Callable[[], bytes]] = {
    "nested": lambda: b"[" * 5000,
    "nested and closed": lambda: b"a: " + b"[" * 5000 + b"]" * 5000,
    "nested keys": lambda: b"{a: " * 3000,
    "a number of 5,000 digits": lambda: b"model: " + b"1" * 5000,
    "aliases that grow": lambda: bomb_of_aliases().encode(),
    "aliases that grow, where a text is expected": lambda: bomb_of_aliases().replace("a0:", "name:").encode(),
    "empty": lambda: b"",
    "bytes": lambda: bytes(range(256)),
    "a list": lambda: b"- 1",
    "a tag of Python": lambda: b"!!python/object/apply:os.system [exit 1]",
}


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("file", ["config.yaml", "token2wav/config.yaml", "tokenizer/tokenizer.json"])
def test_an_odd_configuration_is_refused(folder, capsys, file, text):
    (folder / file).write_bytes(TEXTS[text]())
    refusal(folder, capsys)


def tokenizer_with(folder: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    path = folder / "tokenizer" / "tokenizer.json"
    values = json.loads(path.read_text(encoding="utf-8"))
    edit(values)
    path.write_text(json.dumps(values), encoding="utf-8")


def rare_id(values: dict[str, Any]) -> None:
    values["model"]["vocab"]["rare"] = 10**9


def larger(values: dict[str, Any]) -> None:
    values["model"]["vocab"] |= {f"word{n}": 5000 + n for n in range(5000)}


def another_kind(values: dict[str, Any]) -> None:
    values["model"] = {"type": "WordLevel", "vocab": {"a": 0, "b": 1}, "unk_token": "a"}
    values["added_tokens"] = []


def no_vocabulary(values: dict[str, Any]) -> None:
    values["model"]["vocab"] = {}
    values["model"]["merges"] = []
    values["added_tokens"] = []


@pytest.mark.parametrize("edit", [rare_id, larger, another_kind, no_vocabulary])
def test_a_tokenizer_that_does_not_fit_is_refused(folder, capsys, edit):
    tokenizer_with(folder, edit)
    refusal(folder, capsys)


def test_a_tokenizer_beyond_all_size_is_not_read(folder, capsys):
    os.truncate(folder / "tokenizer" / "tokenizer.json", 1 << 40)  # of nothing: a sparse file
    assert "tokenizer.json" in refusal(folder, capsys)


NOT_A_NUMBER = [
    "encoder.conv1.bias",
    "llm.model.embed_tokens.weight",
    "speech_head.bias",
    "projection.weight",
]


@pytest.mark.parametrize("name", NOT_A_NUMBER)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_named(folder, name, value):
    spoil(folder / "model.safetensors", name, value)
    engine = echat.load(folder)
    decoding = DecodingDefaults(max_new_ids=200)
    with pytest.raises(ValueError, match=f"expected finite weights, found {name} with 1 of"):
        engine.run(ask(audio=folder / "examples" / "question.wav"), "s2s", decoding=decoding, speak=False)


@pytest.mark.parametrize("file", ["token2wav/flow", "token2wav/hift", "speech_tokenizer/model"])
def test_weights_of_the_voice_that_are_no_numbers_are_named(folder, file):
    path = folder / f"{file}.safetensors"
    name = next(name for name, tensor in load_file(path).items() if tensor.is_floating_point())
    spoil(path, name, float("nan"))
    with pytest.raises(CheckpointError, match=f"expected finite numbers, found others in {name}"):
        _ = echat.load(folder).token2wav.tokenizer


def spoil(path: Path, name: str, value: float) -> None:
    tensors = load_file(path)
    tensors[name].view(-1)[1] = value
    save_file(tensors, path, metadata={"format": "pt"})


# --- torch files


def repacked(path: Path, pickled: Callable[[bytes], bytes], kind: int = zipfile.ZIP_STORED) -> Path:
    """A torch file whose pickle was changed, as an archive of this kind of compression."""
    torch.save({"a": torch.zeros(3)}, path)
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", kind) as archive:
        for name, data in records.items():
            archive.writestr(name, pickled(data) if name.endswith("data.pkl") else data)
    return path


def marks(count: int) -> Callable[[bytes], bytes]:
    return lambda data: data[:2] + b"(" * count + data[2:]


def test_an_archive_that_unpacks_to_more_is_refused(tmp_path):
    path = repacked(tmp_path / "bomb.pt", marks(200_000_000), zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 1_000_000
    with pytest.raises(CheckpointError, match="bomb.pt: .* found packed ones"):
        read_torch_file(path)


def test_a_structure_beyond_all_size_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="expected at most 1048576 bytes"):
        read_torch_file(repacked(tmp_path / "large.pt", marks(5_000_000)))


@pytest.mark.slow
def test_a_file_without_an_archive_is_bounded_as_well(tmp_path):
    path = tmp_path / "old.pt"
    torch.save({"a": torch.arange(3), "b": {"c": 1}}, path, _use_new_zipfile_serialization=False)
    assert torch.equal(read_torch_file(path)["a"], torch.arange(3))
    data = path.read_bytes()
    (tmp_path / "marks.pt").write_bytes(data[:2] + b"(" * 50_000_000 + data[2:])
    with pytest.raises(CheckpointError, match="marks.pt: "):
        read_torch_file(tmp_path / "marks.pt")


def test_a_tensor_of_more_values_than_the_file_holds_is_refused(tmp_path):
    path = tmp_path / "wide.pt"
    torch.save({"model_state_dict": {"a": torch.zeros(1).expand(10**9, 10**3)}}, path)
    with pytest.raises(CheckpointError, match="expected tensors of the file's own values"):
        read_torch_file(path)


class Runs:
    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self):
        return os.mkdir, (str(self.proof),)


@pytest.mark.parametrize("archive", [True, False])
def test_code_in_a_torch_file_is_not_run(tmp_path, archive):
    path = tmp_path / "evil.pt"
    torch.save({"a": Runs(tmp_path / "proof")}, path, _use_new_zipfile_serialization=archive)
    with pytest.raises(CheckpointError, match="evil.pt"):
        read_torch_file(path)
    assert not (tmp_path / "proof").exists()


def test_what_is_whole_is_read(tmp_path):
    path = tmp_path / "good.pt"
    table = torch.randn(4, 3)
    torch.save({"table": table, "tied": table, "part": table[1:], "turned": table.T, "step": 3}, path)
    found = load_weights_only(path)
    assert (
        found["step"] == 3 and torch.equal(found["part"], table[1:]) and torch.equal(found["turned"], table.T)
    )


@pytest.mark.parametrize("text", ["", "[" * 5000, "[]", "{", '{"a": ' + "1" * 5000 + "}", "\udcff"])
def test_json_that_is_no_object_is_refused(tmp_path, text):
    path = tmp_path / "config.json"
    path.write_text(text, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(CheckpointError, match="config.json: expected a JSON object"):
        read_json(path)


def test_other_threads_may_build_what_they_like_meanwhile():
    import threading

    def build() -> torch.nn.Module:
        other = threading.Thread(target=lambda: [torch.nn.Linear(1, 1) for _ in range(1000)])
        other.start()
        other.join()
        return torch.nn.Linear(2, 3)

    tensors = dict(torch.nn.Linear(2, 3).state_dict())
    module = build_on_meta(build, tensors, "here")
    assert module.weight.is_meta and torch.nn.Linear(1, 1).weight.device.type == "cpu"
    with pytest.raises(CheckpointError, match="here: expected weights for the whole configuration"):
        build_on_meta(
            lambda: torch.nn.Sequential(*(torch.nn.Linear(1, 1) for _ in range(1000))), tensors, "here"
        )
