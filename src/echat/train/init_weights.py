"""Where a model starts from: nothing, an earlier stage, released weights, or parts of several.

``init_from: {all: X}`` or ``{encoder: X, llm: Y}``, copied in the order written. X is one of

* a model folder, or what another training exported;
* a released OSUM-EChat ``.pt`` with its Qwen2 folder beside it (``llm/``, or the same folder);
* for ``encoder``: Whisper, as the ``.pt`` of openai or as a Hugging Face folder;
* for ``llm``: a Qwen2, Qwen2.5, Qwen3 or Llama folder of Hugging Face;
* a ``.safetensors`` file under the names of the module.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from echat.checkpoint import CheckpointError, load_strict, read_tensors
from echat.config import load_config, read_yaml, validate
from echat.dialogue.capabilities import Capabilities
from echat.dialogue.tasks import Profile
from echat.model.llm import ARCHITECTURES, LLMConfig
from echat.model.model_folder import ModelFolderConfig
from echat.model.speech_llm import SpeechLLMConfig
from echat.model_files import CONFIG_FILE, TOKENIZER_FOLDER, WEIGHTS_FILE
from echat.release import osum_weights
from echat.release.pretrained import is_openai_whisper, read_hf_config, read_llm, read_whisper
from echat.safe_loading import read_torch_file

WHOLE = "all"
SHAPED = ("encoder", "adapter", "llm")  # parts of `SpeechLLMConfig`
_NOT_OF_WHISPER = ("layer_mix.*",)


@dataclass(frozen=True)
class InitSource:
    """Weights under our names, and what their source says about the model."""

    where: str
    tensors: Mapping[str, Tensor]
    model: SpeechLLMConfig | None = None  # the whole shape, where it is known
    parts: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # part -> fields of its shape
    tokenizer: Path | None = None  # folder of the text tokenizer
    profile: Profile | None = None  # the dialect that the weights were trained in
    unknown: tuple[str, ...] = ()  # globs of what its kind never has and what begins fresh


def init_from(module: nn.Module, sources: Mapping[str, str]) -> None:
    """Copy weights in, in the order written; a part takes the tensors under its own name, all of them."""
    for name, source in sources.items():
        init = open_init_source(source)
        if name == WHOLE:
            load_strict(module, init.tensors, init.where)
            continue
        part = dict(module.named_modules()).get(name)
        if part is None:
            known = ", ".join(child for child, _ in module.named_children())
            raise ValueError(f"init_from: expected {WHOLE} or one of {known}, found {name!r}")
        own = {
            key.removeprefix(f"{name}."): value
            for key, value in init.tensors.items()
            if key.startswith(f"{name}.")
        }
        if not own:
            tops = ", ".join(sorted({key.split(".")[0] for key in init.tensors}))
            raise ValueError(
                f"init_from.{name}: expected tensors under {name}. in {init.where}, found {tops or 'none'}"
            )
        load_strict(part, own, f"{init.where}, {name}", ignore=init.unknown)


def open_init_source(source: str) -> InitSource:
    """Look at a source and read what it is; tensors stay memory-mapped. Raises CheckpointError."""
    path = Path(source)
    if path.suffix == ".safetensors":
        return InitSource(source, read_tensors(path))
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
        return InitSource(source, whisper.tensors, parts={"encoder": whisper.shape}, unknown=_NOT_OF_WHISPER)
    if kind in ARCHITECTURES and not list(path.glob("*.pt")):
        return _from_llm(path)
    (weights,) = _only(path, "*.pt")
    return _from_pt(weights)


def _from_folder(folder: Path) -> InitSource:
    """Our own model folder, or the export of another training."""
    weights = folder / WEIGHTS_FILE
    if not weights.is_file():
        (weights,) = _only(folder, "*.safetensors")
    tensors = read_tensors(weights)
    if read_yaml(folder / CONFIG_FILE).get("kind") != "echat":
        return InitSource(str(weights), tensors)
    config = load_config(ModelFolderConfig, folder / CONFIG_FILE)
    parts = {name: getattr(config.model, name).model_dump() for name in SHAPED}
    return InitSource(str(weights), tensors, config.model, parts, folder / TOKENIZER_FOLDER, config.profile)


def _from_pt(path: Path) -> InitSource:
    if is_openai_whisper(read_torch_file(path)):
        whisper = read_whisper(path)
        return InitSource(
            str(path), whisper.tensors, parts={"encoder": whisper.shape}, unknown=_NOT_OF_WHISPER
        )
    llm = osum_weights.llm_folder_beside(path)
    config, tensors = osum_weights.read_osum(path, llm, **osum_weights.stated_heads(path))
    parts = {name: getattr(config, name).model_dump() for name in SHAPED}
    return InitSource(str(path), tensors, config, parts, llm, "osum")


def _from_llm(folder: Path) -> InitSource:
    config = LLMConfig.from_transformers(read_hf_config(folder), str(folder))
    stated = config.model_dump(exclude={"table_std"})  # of a fresh table only
    return InitSource(str(folder), read_llm(folder, config), parts={"llm": stated}, tokenizer=folder)


def _only(folder: Path, pattern: str) -> list[Path]:
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        raise CheckpointError(
            f"{folder}: expected a model folder, a Whisper, Qwen2, Qwen3 or Llama folder of Hugging Face, or "
            f"one {pattern} file, found {len(found)} {pattern} files; check the path"
        )
    return found


def initial_config(
    given: SpeechLLMConfig | None, sources: Mapping[str, str]
) -> tuple[SpeechLLMConfig, Path | None]:
    """The model's shape and the folder of its text tokenizer: as the recipe says, else as the sources do.

    What neither says has the released size. Raises ValueError where the two do not agree.
    """
    inits = {name: open_init_source(source) for name, source in sources.items() if name in (WHOLE, *SHAPED)}
    tokenizer = next((s.tokenizer for n in (WHOLE, "llm") if (s := inits.get(n)) and s.tokenizer), None)
    whole = inits.get(WHOLE)
    if whole is not None:
        if whole.model is None:
            raise ValueError(
                f"init_from.{WHOLE}: expected a whole model, found only "
                f"{', '.join(whole.parts) or 'tensors'} in {whole.where}; name the part that begins with it, "
                f"such as init_from.{next(iter(whole.parts), 'llm')}"
            )
        if given is not None and given != whole.model:
            raise ValueError(
                f"model: expected the shape of {whole.where}, found another; leave `model:` out of the recipe"
            )
        return whole.model, tokenizer
    config = given or SpeechLLMConfig()
    for name, init in inits.items():
        is_given = given is not None and name in given.model_fields_set
        config = _with_part(config, name, init, is_given)
    return config, tokenizer


def init_has_ctc(sources: Mapping[str, str]) -> bool:
    """Whether the encoder's frames were trained by CTC over the text table in one of these sources."""
    last_parts = (WHOLE, "projection")  # what the frames leave last
    configs = [Path(source) / CONFIG_FILE for name, source in sources.items() if name in last_parts]
    return any(path.is_file() and bool(read_yaml(path, ModelFolderConfig).get("ctc")) for path in configs)


def inherited_learned(sources: Mapping[str, str]) -> Capabilities:
    """What the folder of the whole model that one begins with declares of texts and conversations."""
    path = Path(sources.get(WHOLE, "")) / CONFIG_FILE
    declared = read_yaml(path).get("learned") if path.is_file() else None
    return validate(Capabilities, declared or {}, f"{path}, learned")


def _with_part(config: SpeechLLMConfig, name: str, init: InitSource, is_given: bool) -> SpeechLLMConfig:
    """The shape with one part as its source states it; a part that the recipe gives must agree."""
    stated, part = init.parts.get(name, {}), getattr(config, name)
    if not is_given:
        return config.model_copy(update={name: part.model_copy(update=dict(stated))})
    for key in set(stated) & type(part).model_fields.keys() - _FREE:
        if getattr(part, key) != stated[key]:
            raise ValueError(
                f"model.{name}.{key}: expected {stated[key]} as {init.where} has it, "
                f"found {getattr(part, key)}; leave model.{name} out of the recipe, its source states it"
            )
    return config


_FREE = frozenset(("dropout", "max_frames", "max_positions", "position_rounding", "table_std"))
