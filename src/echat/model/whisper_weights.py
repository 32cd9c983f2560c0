"""A Whisper encoder as a start: the openai `.pt` layout and the Hugging Face safetensors layout.

Both hold an encoder and a decoder; only the encoder is read. Its positions are the sinusoids that we compute,
which is checked.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from echat.checkpoint import CheckpointError
from echat.foreign import read_torch_file
from echat.model.blocks import sinusoids
from echat.model.folder_weights import read_config, read_folder_tensors

PREFIX = "encoder."  # of our names in `SpeechLLM`
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
    return WhisperEncoder(_ours(state["model_state_dict"], "encoder.", _OPENAI, str(path)), shape)


def is_openai_whisper(state: object) -> bool:
    """Is this what an openai `.pt` of Whisper holds?"""
    if not isinstance(state, Mapping) or not {"dims", "model_state_dict"} <= state.keys():
        return False
    tensors = state["model_state_dict"]
    return isinstance(tensors, Mapping) and all(isinstance(tensor, Tensor) for tensor in tensors.values())


def _read_folder(folder: Path) -> WhisperEncoder:
    config = read_config(folder)
    names = {"n_mels": "num_mel_bins", "dim": "d_model", "blocks": "encoder_layers"}
    names |= {"heads": "encoder_attention_heads", "ffn": "encoder_ffn_dim"}
    tensors = read_folder_tensors(folder, lambda name: name.removeprefix("model.").startswith("encoder."))
    plain = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
    shape = _sizes(config, names, str(folder))
    return WhisperEncoder(_ours(plain, "encoder.", _HUGGING_FACE, str(folder)), shape)


def _sizes(found: object, names: Mapping[str, str], where: str) -> dict[str, int]:
    """Fields of `EncoderConfig` from what the source calls them."""
    values = found if isinstance(found, Mapping) else {}
    for name in names.values():
        if not isinstance(values.get(name), int):
            raise CheckpointError(f"{where}: expected the size {name}, found {values.get(name)!r}")
    return {ours: values[theirs] for ours, theirs in names.items()}


def _ours(
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
        tensors[PREFIX + own] = tensor
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
