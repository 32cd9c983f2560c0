"""Sources of weights: what a model folder, a released file or a Hugging Face folder holds, under our names.

A source is one of

* a model folder, or what another training exported;
* a released OSUM-EChat ``.pt`` with its Qwen2 folder beside it (``llm/``, or the same folder);
* Whisper, as the ``.pt`` of openai or as a Hugging Face folder: the encoder;
* a Qwen2, Qwen2.5, Qwen3 or Llama folder of Hugging Face: the language model;
* a ``.safetensors`` file under the names of the module.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from echat.checkpoint import CheckpointError
from echat.config import load_config, read_yaml
from echat.dialogue.tasks import Profile
from echat.model.llm import ARCHITECTURES, LLMConfig
from echat.model.model_folder import ModelFolderConfig
from echat.model.speech_llm import SpeechLLMConfig
from echat.model_files import CONFIG_FILE, TOKENIZER_FOLDER, WEIGHTS_FILE
from echat.quantized_weights import declared_quantization, read_weights
from echat.release import osum_weights
from echat.release.pretrained import is_openai_whisper, read_hf_config, read_llm, read_whisper
from echat.safe_loading import read_torch_file

SHAPED = ("encoder", "adapter", "llm")  # parts of `SpeechLLMConfig`
_NOT_OF_WHISPER = ("layer_mix.*",)


@dataclass(frozen=True)
class WeightSource:
    """Weights under our names, and what their source says about the model."""

    where: str
    tensors: Mapping[str, Tensor]
    model: SpeechLLMConfig | None = None  # the whole shape, where it is known
    parts: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # part -> fields of its shape
    tokenizer: Path | None = None  # folder of the text tokenizer
    profile: Profile | None = None  # the dialect that the weights were trained in
    unknown: tuple[str, ...] = ()  # globs of what its kind never has and what begins fresh


def open_weight_source(source: str) -> WeightSource:
    """Look at a source and read what it is; tensors stay memory-mapped. Raises CheckpointError."""
    path = Path(source)
    if path.suffix == ".safetensors":
        return WeightSource(source, read_weights(path, declared=None).tensors)
    if path.suffix == ".pt":
        return _from_pt(path)
    if not path.is_dir():
        raise CheckpointError(
            f"init_from: expected a folder, a .pt or a .safetensors file at {source}, found nothing; "
            "check the path, or run the stage that makes it"
        )
    kind = read_hf_config(path).get("model_type")
    if (path / CONFIG_FILE).is_file():
        return _from_folder(path)
    if kind == "whisper":
        whisper = read_whisper(path)
        return WeightSource(
            source, whisper.tensors, parts={"encoder": whisper.shape}, unknown=_NOT_OF_WHISPER
        )
    if kind in ARCHITECTURES and not list(path.glob("*.pt")):
        return _from_llm(path)
    (weights,) = _only(path, "*.pt")
    return _from_pt(weights)


def _from_folder(folder: Path) -> WeightSource:
    """Our own model folder, or the export of another training."""
    weights = folder / WEIGHTS_FILE
    if not weights.is_file():
        (weights,) = _only(folder, "*.safetensors")
    values = read_yaml(folder / CONFIG_FILE)
    tensors = read_weights(weights, declared_quantization(values, str(folder / CONFIG_FILE))).tensors
    if values.get("kind") != "echat":
        return WeightSource(str(weights), tensors)
    config = load_config(ModelFolderConfig, folder / CONFIG_FILE)
    parts = {name: getattr(config.model, name).model_dump() for name in SHAPED}
    return WeightSource(str(weights), tensors, config.model, parts, folder / TOKENIZER_FOLDER, config.profile)


def _from_pt(path: Path) -> WeightSource:
    if is_openai_whisper(read_torch_file(path)):
        return _from_whisper(path)
    llm = osum_weights.llm_folder_beside(path)
    config, tensors = osum_weights.read_osum(path, llm, **osum_weights.stated_heads(path))
    parts = {name: getattr(config, name).model_dump() for name in SHAPED}
    return WeightSource(str(path), tensors, config, parts, llm, "osum")


def _from_whisper(path: Path) -> WeightSource:
    found = read_whisper(path)
    return WeightSource(str(path), found.tensors, parts={"encoder": found.shape}, unknown=_NOT_OF_WHISPER)


def _from_llm(folder: Path) -> WeightSource:
    config = LLMConfig.from_transformers(read_hf_config(folder), str(folder))
    stated = config.model_dump(exclude={"table_std"})  # of a fresh table only
    return WeightSource(str(folder), read_llm(folder, config), parts={"llm": stated}, tokenizer=folder)


def _only(folder: Path, pattern: str) -> list[Path]:
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        raise CheckpointError(
            f"{folder}: expected a model folder, a Whisper, Qwen2, Qwen3 or Llama folder of Hugging Face, or "
            f"one {pattern} file, found {len(found)} {pattern} files; check the path"
        )
    return found
