"""Pretrained parts to start from: a Whisper encoder (openai `.pt` or Hugging Face), a Qwen2, Qwen3 or Llama.

Hugging Face lays a model out as `config.json` and one or several safetensors files.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from echat.checkpoint import CheckpointError, read_tensors
from echat.model.blocks import sinusoids
from echat.model.llm import LLMConfig
from echat.safe_loading import read_json, read_torch_file

HF_CONFIG = "config.json"
HF_WEIGHTS = "model.safetensors"
HF_INDEX = "model.safetensors.index.json"  # names the file of each tensor, when there are several


def read_hf_config(folder: Path) -> dict[str, Any]:
    """The parsed `config.json`; empty when there is none."""
    path = folder / HF_CONFIG
    return read_json(path) if path.is_file() else {}


def read_hf_tensors(folder: Path, wanted: Callable[[str], bool] = lambda name: True) -> dict[str, Tensor]:
    """The wanted tensors under their own names, memory-mapped. Raises CheckpointError where a file is not
    there."""
    if (folder / HF_WEIGHTS).is_file():
        files = [HF_WEIGHTS]
    elif (folder / HF_INDEX).is_file():
        weight_map = read_json(folder / HF_INDEX).get("weight_map")
        if not isinstance(weight_map, dict) or not all(_is_here(file) for file in weight_map.values()):
            raise CheckpointError(
                f"{folder / HF_INDEX}: expected weight_map with the file of this folder for each tensor, "
                "found none; download the whole model folder"
            )
        files = sorted({file for name, file in weight_map.items() if wanted(name)})
    else:
        raise CheckpointError(
            f"{folder}: expected {HF_WEIGHTS} or {HF_INDEX}, found neither; download the whole model "
            "folder (weights in .bin files are pickled code, take the safetensors)"
        )
    found = {name: tensor for file in files for name, tensor in read_tensors(folder / file).items()}
    return {name: tensor for name, tensor in found.items() if wanted(name)}


def _is_here(file: object) -> bool:
    return isinstance(file, str) and Path(file).name == file


# --- A Whisper encoder as a start: the openai `.pt` layout and the Hugging Face safetensors layout.

ENCODER_PREFIX = "encoder."  # of our names in `SpeechLLM`
POSITION_TOLERANCE = 2**-10  # one rounding to fp16 of values up to 1

# Patterns on names behind the layout's own prefix -> our names behind `encoder.`
_OPENAI = (
    (r"^blocks\.(\d+)\.attn_ln\.", r"blocks.\1.attention_norm."),
    (r"^blocks\.(\d+)\.attn\.", r"blocks.\1.attention."),
    (r"^blocks\.(\d+)\.mlp_ln\.", r"blocks.\1.feed_forward_norm."),
    (r"^blocks\.(\d+)\.mlp\.0\.", r"blocks.\1.feed_forward.expand."),
    (r"^blocks\.(\d+)\.mlp\.2\.", r"blocks.\1.feed_forward.contract."),
    (r"^ln_post\.", "final_norm."),
)
_HUGGING_FACE = (
    (r"^layers\.(\d+)\.self_attn_layer_norm\.", r"blocks.\1.attention_norm."),
    (r"^layers\.(\d+)\.self_attn\.q_proj\.", r"blocks.\1.attention.query."),
    (r"^layers\.(\d+)\.self_attn\.k_proj\.", r"blocks.\1.attention.key."),
    (r"^layers\.(\d+)\.self_attn\.v_proj\.", r"blocks.\1.attention.value."),
    (r"^layers\.(\d+)\.self_attn\.out_proj\.", r"blocks.\1.attention.out."),
    (r"^layers\.(\d+)\.final_layer_norm\.", r"blocks.\1.feed_forward_norm."),
    (r"^layers\.(\d+)\.fc1\.", r"blocks.\1.feed_forward.expand."),
    (r"^layers\.(\d+)\.fc2\.", r"blocks.\1.feed_forward.contract."),
    (r"^layer_norm\.", "final_norm."),
)
_POSITIONS = ("positional_embedding", "embed_positions.weight")


@dataclass(frozen=True)
class WhisperEncoder:
    """Tensors under the names of `SpeechLLM`, and the encoder's shape as fields of `EncoderConfig`."""

    tensors: dict[str, Tensor]
    shape: dict[str, int]


def read_whisper(path: Path) -> WhisperEncoder:
    """The encoder of an openai `.pt`, or of a Hugging Face folder. Raises CheckpointError."""
    return _read_folder(path) if path.is_dir() else _read_openai(path)


def _read_openai(path: Path) -> WhisperEncoder:
    state = read_torch_file(path)
    if not is_openai_whisper(state):
        raise CheckpointError(f"{path}: expected a .pt of openai's Whisper, found another content")
    names = {"n_mels": "n_mels", "dim": "n_audio_state", "blocks": "n_audio_layer", "heads": "n_audio_head"}
    shape = _sizes(state["dims"], names, str(path))
    shape["ffn"] = 4 * shape["dim"]
    return WhisperEncoder(_map_names(state["model_state_dict"], "encoder.", _OPENAI, str(path)), shape)


def is_openai_whisper(state: object) -> bool:
    """Is this what an openai `.pt` of Whisper holds?"""
    if not isinstance(state, Mapping) or not {"dims", "model_state_dict"} <= state.keys():
        return False
    tensors = state["model_state_dict"]
    return isinstance(tensors, Mapping) and all(isinstance(tensor, Tensor) for tensor in tensors.values())


def _read_folder(folder: Path) -> WhisperEncoder:
    config = read_hf_config(folder)
    names = {"n_mels": "num_mel_bins", "dim": "d_model", "blocks": "encoder_layers"}
    names |= {"heads": "encoder_attention_heads", "ffn": "encoder_ffn_dim"}
    tensors = read_hf_tensors(folder, lambda name: name.removeprefix("model.").startswith("encoder."))
    plain = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
    shape = _sizes(config, names, str(folder))
    return WhisperEncoder(_map_names(plain, "encoder.", _HUGGING_FACE, str(folder)), shape)


def _sizes(found: object, names: Mapping[str, str], where: str) -> dict[str, int]:
    """Fields of `EncoderConfig` from what the source calls them."""
    values = found if isinstance(found, Mapping) else {}
    for name in names.values():
        if not isinstance(values.get(name), int):
            raise CheckpointError(f"{where}: expected the size {name}, found {values.get(name)!r}")
    return {ours: values[theirs] for ours, theirs in names.items()}


def _map_names(
    state: Mapping[str, Tensor], prefix: str, renames: tuple[tuple[str, str], ...], where: str
) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if not name.startswith(prefix):
            continue
        own = name.removeprefix(prefix)
        if own in _POSITIONS:
            _check_positions(tensor, where)
            continue
        for pattern, replacement in renames:
            own = re.sub(pattern, replacement, own)
        tensors[ENCODER_PREFIX + own] = tensor
    if not tensors:
        raise CheckpointError(f"{where}: expected the encoder of a Whisper model, found no tensor of one")
    return tensors


def _check_positions(table: Tensor, where: str) -> None:
    rows, dim = table.shape
    error = float((table.float() - sinusoids(rows, dim, "halves")).abs().max())
    if not error <= POSITION_TOLERANCE:
        raise CheckpointError(
            f"{where}: expected the sinusoids of Whisper as positions, found values {error:.3g} away; "
            "the encoder was trained with others, which ours does not have"
        )


# --- A Qwen2, Qwen2.5, Qwen3 or Llama folder of Hugging Face as a start: language model, shape and tokenizer.

LLM_PREFIX = "llm."  # of our names in `SpeechLLM`; behind it the names are those of transformers
_LLM_HEAD = "lm_head.weight"


def read_llm(folder: Path, config: LLMConfig) -> dict[str, Tensor]:
    """Tensors under the names of `SpeechLLM`; a head that is the text table once more is left out."""
    tensors = read_hf_tensors(folder)
    if config.tie_embeddings:
        tensors.pop(_LLM_HEAD, None)
    return {LLM_PREFIX + name: tensor for name, tensor in tensors.items()}
