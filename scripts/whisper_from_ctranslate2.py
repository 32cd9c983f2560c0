"""The encoder of a Whisper model in CTranslate2's format, as a folder of Hugging Face.

    python scripts/whisper_from_ctranslate2.py model.bin FOLDER

writes `config.json` and `model.safetensors`, which a recipe names as `init_from: {encoder: FOLDER}`.
"""

import argparse
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

BINARY_VERSION = 6
HEAD_DIM = 64  # of every Whisper
DTYPES = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}
NORM = {"gamma": "weight", "beta": "bias"}


def read_variables(path: Path) -> dict[str, Tensor]:
    """All tensors of a `model.bin` under the format's names, aliases too. ValueError for other files."""
    with path.open("rb") as file:
        (version,) = _numbers(file, "I")
        if version != BINARY_VERSION:
            raise ValueError(f"{path}: expected CTranslate2 binary version {BINARY_VERSION}, found {version}")
        spec, (_, count) = _name(file), _numbers(file, "II")
        if spec != "WhisperSpec":
            raise ValueError(f"{path}: expected a WhisperSpec, found {spec}")
        variables = dict(_variable(file, path) for _ in range(count))
        (aliases,) = _numbers(file, "I")
        for _ in range(aliases):
            alias, name = _name(file), _name(file)
            variables[alias] = variables[name]
    return variables


def _variable(file: BinaryIO, path: Path) -> tuple[str, Tensor]:
    name, (rank,) = _name(file), _numbers(file, "B")
    shape = _numbers(file, f"{rank}I") if rank else ()
    kind, size = _numbers(file, "BI")
    if kind not in DTYPES:
        raise ValueError(f"{path}, {name}: expected a data type of {sorted(DTYPES)}, found {kind}")
    values = np.frombuffer(file.read(size), dtype=DTYPES[kind]).reshape(shape)
    return name, torch.from_numpy(values.copy())


def _name(file: BinaryIO) -> str:
    (length,) = _numbers(file, "H")
    return file.read(length)[:-1].decode()  # a zero byte ends it


def _numbers(file: BinaryIO, form: str) -> tuple[int, ...]:
    form = "<" + form
    return struct.unpack(form, file.read(struct.calcsize(form)))


def hugging_face_names(variables: dict[str, Tensor]) -> dict[str, Tensor]:
    """The encoder's tensors under the names that transformers gives them."""
    return {
        f"model.encoder.{ours}": tensor.contiguous()
        for name, tensor in variables.items()
        if name.startswith("encoder/")
        for ours, tensor in _renamed(name.removeprefix("encoder/"), tensor)
    }


def _renamed(name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    parts = name.split("/")
    kind = parts[-1]
    if parts[0] in ("conv1", "conv2"):
        yield f"{parts[0]}.{kind}", tensor
    elif parts[0] == "position_encodings":
        yield "embed_positions.weight", tensor
    elif parts[0] == "layer_norm":
        yield f"layer_norm.{NORM[kind]}", tensor
    elif parts[0].startswith("layer_"):
        layer = f"layers.{parts[0].removeprefix('layer_')}"
        yield from ((f"{layer}.{own}", part) for own, part in _of_layer(parts[1:-1], kind, tensor))


def _of_layer(place: list[str], kind: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    match place:
        case ["self_attention", "layer_norm"]:
            yield f"self_attn_layer_norm.{NORM[kind]}", tensor
        case ["self_attention", "linear_0"]:  # queries, keys and values, one below the other
            for own, part in zip(("q_proj", "k_proj", "v_proj"), tensor.chunk(3)):
                if (own, kind) != ("k_proj", "bias"):  # which is zero: Whisper's keys have none
                    yield f"self_attn.{own}.{kind}", part
        case ["self_attention", "linear_1"]:
            yield f"self_attn.out_proj.{kind}", tensor
        case ["ffn", "layer_norm"]:
            yield f"final_layer_norm.{NORM[kind]}", tensor
        case ["ffn", "linear_0" | "linear_1" as linear]:
            yield f"fc{int(linear[-1]) + 1}.{kind}", tensor


def config_of(tensors: dict[str, Tensor]) -> dict[str, object]:
    """`config.json` as far as the encoder goes."""
    dim, n_mels, _ = tensors["model.encoder.conv1.weight"].shape
    layers = {name.split(".")[3] for name in tensors if name.startswith("model.encoder.layers.")}
    return {
        "model_type": "whisper",
        "num_mel_bins": n_mels,
        "d_model": dim,
        "encoder_layers": len(layers),
        "encoder_attention_heads": dim // HEAD_DIM,
        "encoder_ffn_dim": len(tensors["model.encoder.layers.0.fc1.weight"]),
    }


def convert(source: Path, folder: Path) -> None:
    tensors = hugging_face_names(read_variables(source))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config_of(tensors), indent=2), encoding="utf-8")
    save_file(tensors, folder / "model.safetensors")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    convert(arguments.source, arguments.folder)
