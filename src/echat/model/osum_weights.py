"""The released `.pt` files: their key names, their sizes, and a strict way in.

A released file is a flat dictionary name -> tensor. Four of its names point at one text table, one norm is
never used, two position tables are stored; everything else maps one to one onto `SpeechLLM`.
"""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from echat.checkpoint import CheckpointError
from echat.model.adapter import AdapterConfig
from echat.model.llm import LLMConfig
from echat.model.speech_encoder import EncoderConfig
from echat.model.speech_llm import SpeechLLM, SpeechLLMConfig

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
POSITION_TABLES = {
    "encoder.embed.pos_enc.pe": "encoder.positions",
    "speech_transformer.embed.pos_enc.pe": "adapter.positions",
}
# A stored table may have passed through bf16 (one rounding of values up to 1); more is another table.
POSITION_TABLE_TOLERANCE = 2**-8
# Attention heads leave no trace in the shapes; these are the released choices.
ENCODER_HEAD_DIM = 64
ADAPTER_HEADS = 4

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


def our_name(released: str) -> str:
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
    return SpeechLLMConfig(encoder=encoder, adapter=adapter, llm=llm, speech_codec_size=rows - 3)


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
    return LLMConfig.from_transformers(json.loads(path.read_text(encoding="utf-8")))


def read_state(path: Path) -> dict[str, Tensor]:
    """The flat dictionary of a released `.pt`, memory-mapped where the file allows; pickled code is never
    run."""
    if not path.is_file():
        raise CheckpointError(f"{path}: expected a released .pt file, found none; check the path")
    try:
        state: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # unpickling fails in many ways; all of them mean the same to the user
        raise CheckpointError(
            f"{path}: expected a torch file of plain tensors, found {path.stat().st_size} bytes that "
            f"cannot be read ({' '.join(str(error).split())[:120]}); download the file again"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise CheckpointError(f"{path}: expected a flat dictionary of tensors, found another structure")
    return state


def convert(state: Mapping[str, Tensor], where: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Released names -> (our parameters, stored position tables by module). Aliases are checked to agree."""
    parameters: dict[str, Tensor] = {}
    tables: dict[str, Tensor] = {}
    for name, tensor in state.items():
        canonical = ALIASES.get(name)
        if canonical is None and name not in UNUSED:
            if name in POSITION_TABLES:
                tables[POSITION_TABLES[name]] = tensor[0]
            else:
                parameters[our_name(name)] = tensor
    for name in ALIASES.keys() & state.keys():
        canonical = ALIASES[name]
        twin = parameters.setdefault(our_name(canonical), state[name])
        same = twin.data_ptr() == state[name].data_ptr() or torch.equal(twin, state[name])
        if not same:
            raise CheckpointError(
                f"{where}, key {name}: expected the values of {canonical} (one tied table), found others; "
                "the file mixes two models"
            )
    return parameters, tables


def load_osum(
    path: Path, llm_folder: Path, encoder_heads: int | None = None, adapter_heads: int | None = None
) -> SpeechLLM:
    """A released `.pt` and its Qwen2 folder -> model in float32, nothing missing and nothing left over."""
    state = read_state(path)
    shapes = {name: tensor.shape for name, tensor in state.items()}
    _require_landmarks(shapes, path)
    config = infer_config(shapes, read_llm_config(llm_folder), encoder_heads, adapter_heads)
    parameters, tables = convert(state, str(path))
    model = build(config, parameters, str(path))
    for module_name, table in tables.items():
        _take_table(model, module_name, table.float(), path)
    return model


def _require_landmarks(shapes: Mapping[str, torch.Size], path: Path) -> None:
    """The names from which sizes are read must be there before anything else can be said."""
    landmarks = (
        "encoder.embed.conv.0.weight",
        "encoder.encoders.0.feed_forward.w_1.weight",
        "speech_transformer.embed.out.0.weight",
        "speech_transformer.encoders.0.feed_forward.w_1.weight",
        "speech_token_emded.weight",
    )
    missing = [name for name in landmarks if name not in shapes]
    if missing:
        raise CheckpointError(
            f"{path}: expected the keys of a released speech dialogue model, found no {missing[0]} among "
            f"{len(shapes)} keys; is it another kind of checkpoint?"
        )


def build(config: SpeechLLMConfig, parameters: Mapping[str, Tensor], where: str) -> SpeechLLM:
    """A float32 model around given parameters, without first filling it with random ones."""
    with torch.device("meta"):
        model = SpeechLLM(config)
    own = model.state_dict()
    missing = [name for name in own if name not in parameters]
    extra = [name for name in parameters if name not in own]
    shapes = [
        f"{name} expected {tuple(own[name].shape)} found {tuple(parameters[name].shape)}"
        for name in own.keys() & parameters.keys()
        if own[name].shape != parameters[name].shape
    ]
    if missing or extra or shapes:
        raise CheckpointError(
            f"{where}: expected the {len(own)} tensors of a speech dialogue model; {len(missing)} missing "
            f"{missing[:3]}, {len(extra)} left over {extra[:3]}, {len(shapes)} of another shape "
            f"{shapes[:3]}; the weights and the language model folder must belong together"
        )
    fresh = {name: tensor.detach().to(torch.float32, copy=True) for name, tensor in parameters.items()}
    model.load_state_dict(fresh, assign=True)
    model.reset_tables()
    return model.requires_grad_(True)


def _take_table(model: SpeechLLM, module_name: str, stored: Tensor, path: Path) -> None:
    """Use the stored position table when it is the computed one up to rounding; refuse any other."""
    positions: Any = model.get_submodule(module_name)
    if stored.shape != positions.table.shape:
        return
    error = float((stored - positions.table).abs().max())
    if error > POSITION_TABLE_TOLERANCE:
        raise CheckpointError(
            f"{path}, position table of {module_name}: expected sinusoids, found values {error:.3g} away; "
            "the file was made by another encoder"
        )
    positions.table = stored.clone()


def released_shapes(config: SpeechLLMConfig) -> dict[str, tuple[int, ...]]:
    """Our name -> shape at any size, without allocating memory."""
    with torch.device("meta"):
        model = SpeechLLM(config)
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
