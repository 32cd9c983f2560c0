"""Initialization of weights: from nothing, an earlier stage, released weights, or parts of several.

``init_from: {all: X}`` or ``{encoder: X, llm: Y}``, copied in the order written; what X may be:
``echat.release.weight_sources``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import nn

from echat.checkpoint import load_strict
from echat.config import read_yaml, validate
from echat.dialogue.capabilities import Capabilities
from echat.model.model_folder import ModelFolderConfig
from echat.model.speech_llm import SpeechLLMConfig
from echat.model_files import CONFIG_FILE
from echat.release.weight_sources import SHAPED, WeightSource, open_weight_source

WHOLE = "all"


def init_from(module: nn.Module, sources: Mapping[str, str]) -> None:
    """Copy weights from their sources, in the order written; a part takes all tensors under its own name."""
    for name, source in sources.items():
        init = open_weight_source(source)
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


def initial_config(
    given: SpeechLLMConfig | None, sources: Mapping[str, str]
) -> tuple[SpeechLLMConfig, Path | None]:
    """The model's shape and the folder of its text tokenizer: as the recipe says, else as the sources do.

    What neither states has the released size. Raises ValueError where the two do not agree.
    """
    inits = {name: open_weight_source(source) for name, source in sources.items() if name in (WHOLE, *SHAPED)}
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
    """The capabilities that the model folder of ``init_from.all`` declares."""
    path = Path(sources.get(WHOLE, "")) / CONFIG_FILE
    declared = read_yaml(path).get("learned") if path.is_file() else None
    return validate(Capabilities, declared or {}, f"{path}, learned")


def _with_part(config: SpeechLLMConfig, name: str, init: WeightSource, is_given: bool) -> SpeechLLMConfig:
    """The shape with one part as its source states it; a part that the recipe states must agree."""
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
