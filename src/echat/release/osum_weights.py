"""The released `.pt` files: their key names, their sizes, and a strict way in.

A released file is a flat dictionary name -> tensor. Four of its names point at one text table, one norm is
never used, two position tables are stored; everything else maps one to one onto `SpeechLLM`.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from echat.checkpoint import CheckpointError, assign_strict
from echat.dialogue.vocabulary import speech_rows
from echat.model.adapter import AdapterConfig
from echat.model.blocks import PositionLayout, Rounding, rounded, sinusoids
from echat.model.llm import LLMConfig
from echat.model.speech_encoder import EncoderConfig
from echat.model.speech_llm import SpeechLLM, SpeechLLMConfig, model_on_meta
from echat.safe_loading import read_json, read_torch_file

# Other names of a tensor that has a canonical name; a file may hold any of them and they must agree. The
# last two are attached at run time, so files saved after an inference have them.
ALIASES = {
    "llama_model.lm_head.weight": "llama_model.model.embed_tokens.weight",
    "embed_tokens.weight": "llama_model.model.embed_tokens.weight",
    "lm_head.weight": "llama_model.model.embed_tokens.weight",
    "llama_model.speech_token_emded.weight": "speech_token_emded.weight",
    "llama_model.speech_head.weight": "speech_head.weight",
    "llama_model.speech_head.bias": "speech_head.bias",
}
UNUSED = ("ln_speech.weight", "ln_speech.bias")  # saved, never computed with
POSITION_TABLES: dict[str, tuple[str, PositionLayout]] = {  # part of the configuration, form of the sinusoids
    "encoder.embed.pos_enc.pe": ("encoder", "halves"),
    "speech_transformer.embed.pos_enc.pe": ("adapter", "interleaved"),
}
ROUNDINGS: tuple[Rounding, ...] = ((), ("fp16",), ("bf16",), ("fp16", "bf16"))
# One rounding to bf16 of values up to 1; more is another table.
POSITION_TABLE_TOLERANCE = 2**-8
# Attention heads leave no trace in the shapes; these are the released choices.
ENCODER_HEAD_DIM = 64
ADAPTER_HEADS = 4
BELONG_TOGETHER = "the weights and the language model folder must belong together"

RENAMES = (
    (r"^encoder\.embed\.conv\.0\.", "encoder.conv1."),
    (r"^encoder\.embed\.conv\.2\.", "encoder.conv2."),
    (r"^speech_transformer\.embed\.out\.0\.", "adapter.input."),
    (r"^speech_transformer\.embed\.out\.1\.", "adapter.input_norm."),
    (r"^speech_transformer\.", "adapter."),
    (r"^(encoder|adapter)\.encoders\.", r"\1.blocks."),
    (r"^(encoder|adapter)\.after_norm\.", r"\1.final_norm."),
    (r"\.self_attn\.linear_q\.", ".attention.query."),
    (r"\.self_attn\.linear_k\.", ".attention.key."),
    (r"\.self_attn\.linear_v\.", ".attention.value."),
    (r"\.self_attn\.linear_out\.", ".attention.out."),
    (r"\.feed_forward\.w_1\.", ".feed_forward.expand."),
    (r"\.feed_forward\.w_2\.", ".feed_forward.contract."),
    (r"^((?:encoder|adapter)\.blocks\.\d+)\.norm1\.", r"\1.attention_norm."),
    (r"^((?:encoder|adapter)\.blocks\.\d+)\.norm2\.", r"\1.feed_forward_norm."),
    (r"^down_sample_2\.conv\.1\.", "subsampler.convs.0."),
    (r"^down_sample_2\.conv\.4\.", "subsampler.convs.1."),
    (r"^down_sample_2\.conv\.7\.", "subsampler.convs.2."),
    (r"^speech_llama_proj\.", "projection."),
    (r"^llama_model\.", "llm."),
    (r"^speech_token_emded\.", "speech_embedding."),
)


def map_key(released: str) -> str:
    """The name in `SpeechLLM` of a released parameter."""
    for pattern, replacement in RENAMES:
        released = re.sub(pattern, replacement, released)
    return released


def infer_config(
    shapes: Mapping[str, torch.Size],
    llm: LLMConfig,
    encoder_heads: int | None = None,
    adapter_heads: int | None = None,
) -> SpeechLLMConfig:
    """Every size read off the shapes of a released file; heads, which leave no trace there, from the
    arguments."""
    for name, axes in {"speech_token_emded.weight": 2, "encoder.embed.conv.0.weight": 3}.items():
        if len(shapes[name]) != axes:
            raise CheckpointError(f"{name}: expected {axes} axes, found the shape {tuple(shapes[name])}")
    rows, _ = shapes["speech_token_emded.weight"]
    dim, n_mels, _ = shapes["encoder.embed.conv.0.weight"]
    adapter_dim = shapes["speech_transformer.embed.out.0.weight"][0]
    encoder = EncoderConfig(
        n_mels=n_mels,
        dim=dim,
        blocks=_count_blocks(shapes, "encoder.encoders"),
        heads=encoder_heads or max(1, dim // ENCODER_HEAD_DIM),
        ffn=shapes["encoder.encoders.0.feed_forward.w_1.weight"][0],
        max_frames=_rows(shapes, "encoder.embed.pos_enc.pe", EncoderConfig().max_frames),
    )
    adapter = AdapterConfig(
        dim=adapter_dim,
        blocks=_count_blocks(shapes, "speech_transformer.encoders"),
        heads=adapter_heads or ADAPTER_HEADS,
        ffn=shapes["speech_transformer.encoders.0.feed_forward.w_1.weight"][0],
        max_frames=_rows(shapes, "speech_transformer.embed.pos_enc.pe", AdapterConfig().max_frames),
    )
    return SpeechLLMConfig(encoder=encoder, adapter=adapter, llm=llm, speech_codec_size=rows - speech_rows(0))


def _rows(shapes: Mapping[str, torch.Size], name: str, default: int) -> int:
    return shapes[name][1] if name in shapes else default


def _count_blocks(shapes: Iterable[str], prefix: str) -> int:
    found = {int(m[1]) for name in shapes if (m := re.match(re.escape(prefix) + r"\.(\d+)\.", name))}
    return len(found)


def read_llm_config(llm_folder: Path) -> LLMConfig:
    """The language model's shape from the Hugging Face folder that a released file needs beside it."""
    path = llm_folder / "config.json"
    if not path.is_file():
        raise CheckpointError(
            f"{llm_folder}: expected a Qwen2 folder with config.json, found none; give its path"
        )
    return LLMConfig.from_transformers(read_json(path), str(path))


def stated_heads(weights: Path) -> dict[str, Any]:
    """Attention heads, which leave no trace in the weights, where a `config.json` of the training code lies
    beside them; the released numbers otherwise."""
    path = weights.parent / "config.json"
    stated = read_json(path) if path.is_file() else {}
    heads: dict[str, Any] = {}
    for part in ("encoder", "adapter"):
        if isinstance(stated.get(part), dict):
            found = heads[f"{part}_heads"] = stated[part].get("attention_heads")
            if not isinstance(found, int) or found < 1:
                raise CheckpointError(f"{path}: expected {part}.attention_heads as a number, found {found!r}")
    return heads


def read_state(path: Path) -> dict[str, Tensor]:
    """The flat dictionary of a released `.pt`, memory-mapped where the file allows; pickled code is never
    run."""
    state = read_torch_file(path)
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise CheckpointError(f"{path}: expected a flat dictionary of tensors, found another structure")
    _require_landmarks(state, path)
    return state


def _require_landmarks(names: Iterable[str], path: Path) -> None:
    """The names from which sizes are read must be there before anything else can be said."""
    landmarks = (
        "encoder.embed.conv.0.weight",
        "encoder.encoders.0.feed_forward.w_1.weight",
        "speech_transformer.embed.out.0.weight",
        "speech_transformer.encoders.0.feed_forward.w_1.weight",
        "speech_token_emded.weight",
    )
    found = set(names)
    missing = [name for name in landmarks if name not in found]
    if missing:
        raise CheckpointError(
            f"{path}: expected the keys of a released speech dialogue model, found no {missing[0]} among "
            f"{len(found)} keys; is it another kind of checkpoint?"
        )


@dataclass(frozen=True)
class KeyMap:
    """Where a released file keeps what."""

    sources: dict[str, str]  # our parameter -> the key that holds it
    aliases: dict[str, str]  # further names -> the key with the same values
    unused: tuple[str, ...]  # saved, never computed with
    tables: tuple[str, ...]  # stored position tables

    @classmethod
    def of(cls, names: Iterable[str]) -> "KeyMap":
        """Sort the keys of a file; one that is none of ours stands among the sources under its own name."""
        names = list(names)
        sources = {map_key(n): n for n in names if n not in {*ALIASES, *UNUSED, *POSITION_TABLES}}
        aliases: dict[str, str] = {}
        for name in names:
            if name in ALIASES:
                twin = sources.setdefault(map_key(ALIASES[name]), name)
                if twin != name:
                    aliases[name] = twin
        return cls(
            sources,
            aliases,
            tuple(name for name in names if name in UNUSED),
            tuple(name for name in names if name in POSITION_TABLES),
        )

    def parameters(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of a file under our names."""
        return {ours: state[key] for ours, key in self.sources.items()}


def check_alias(state: Mapping[str, Tensor], alias: str, key: str, where: str) -> None:
    """Two names of one tensor must hold the same values, shared in the file or not."""
    one, other = state[alias], state[key]
    is_one = one.data_ptr() == other.data_ptr()
    if not is_one and (one.dtype != other.dtype or not torch.equal(one, other)):
        raise CheckpointError(
            f"{where}, key {alias}: expected the values of {key} (one tied table), found others; "
            "the file mixes two models"
        )


def with_position_tables(
    config: SpeechLLMConfig, state: Mapping[str, Tensor], where: str
) -> tuple[SpeechLLMConfig, dict[str, float]]:
    """The configuration whose computed position tables are those of the file, and how far they are by key.

    A stored table (1, rows, dim) is sinusoids that may have passed through lower precisions, which then shows
    in float32; any other table is refused.
    """
    parts: dict[str, Any] = {"encoder": config.encoder, "adapter": config.adapter}
    errors: dict[str, float] = {}
    for key, (part, layout) in POSITION_TABLES.items():
        if key in state:
            rounding, errors[key] = _rounding(state[key][0], layout)
            if not errors[key] <= POSITION_TABLE_TOLERANCE:
                raise CheckpointError(
                    f"{where}, key {key}: expected sinusoids, found values {errors[key]:.3g} away; the file "
                    "was made by another encoder"
                )
            parts[part] = parts[part].model_copy(update={"position_rounding": rounding})
    return config.model_copy(update=parts), errors


def _rounding(stored: Tensor, layout: PositionLayout) -> tuple[Rounding, float]:
    """What the sinusoids of a stored table (rows, dim) went through, and the distance that is left."""
    rows, dim = stored.shape
    exact, stored = sinusoids(rows, dim, layout), stored.float()
    errors = {way: float((rounded(exact, way) - stored).abs().max()) for way in ROUNDINGS}
    best = min(errors, key=lambda way: errors[way])
    return best, errors[best]


def read_osum(
    path: Path, llm_folder: Path, encoder_heads: int | None = None, adapter_heads: int | None = None
) -> tuple[SpeechLLMConfig, dict[str, Tensor]]:
    """The shape of a released `.pt`, and its tensors under our names, memory-mapped."""
    state = read_state(path)
    keys = KeyMap.of(state)
    shapes = {name: tensor.shape for name, tensor in state.items()}
    config = infer_config(shapes, read_llm_config(llm_folder), encoder_heads, adapter_heads)
    config, _ = with_position_tables(config, state, str(path))
    for alias, key in keys.aliases.items():
        check_alias(state, alias, key, str(path))
    return config, keys.parameters(state)


def llm_folder_beside(weights: Path) -> Path:
    """Where the Qwen2 folder of a released `.pt` lies: `llm` beside it, or its own folder."""
    beside = weights.parent / "llm"
    return beside if beside.is_dir() else weights.parent


def load_osum(
    path: Path,
    llm_folder: Path,
    encoder_heads: int | None = None,
    adapter_heads: int | None = None,
    dtype: torch.dtype | None = torch.float32,
) -> SpeechLLM:
    """A released `.pt` and its Qwen2 folder -> model, nothing missing and nothing left over.

    Parameters that the file stores in `dtype` (None: any) stay memory-mapped.
    """
    config, tensors = read_osum(path, llm_folder, encoder_heads, adapter_heads)
    model = model_on_meta(config, tensors, str(path), BELONG_TOGETHER)
    assign_strict(model, tensors, str(path), dtype, BELONG_TOGETHER)
    model.reset_tables()
    return model if dtype is None else model.to(dtype)


def stored_dtype(path: Path) -> torch.dtype:
    """The precision of the language model in a released file, by far its largest part."""
    return next(tensor.dtype for name, tensor in read_state(path).items() if name.startswith("llama_model."))
