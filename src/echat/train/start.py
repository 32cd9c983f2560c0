"""Where a model starts from: nothing, an earlier stage, or parts of several."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import nn

from echat.checkpoint import load_strict, read_tensors
from echat.model.model_folder import WEIGHTS_FILE

WHOLE = "all"


def init_from(module: nn.Module, sources: Mapping[str, str]) -> None:
    """Copy weights in, in the order written: ``{"all": folder}`` or ``{"encoder": folder, "llm": folder}``.

    A part takes the tensors under its own name from the folder's ``model.safetensors``; none may be missing.
    """
    for name, source in sources.items():
        path = Path(source) / WEIGHTS_FILE if Path(source).suffix != ".safetensors" else Path(source)
        tensors = read_tensors(path)
        if name == WHOLE:
            load_strict(module, tensors, str(path))
            continue
        part = dict(module.named_modules()).get(name)
        if part is None:
            known = ", ".join(child for child, _ in module.named_children())
            raise ValueError(f"init_from: expected {WHOLE} or one of {known}, found {name!r}")
        own = {
            key.removeprefix(f"{name}."): value
            for key, value in tensors.items()
            if key.startswith(f"{name}.")
        }
        if not own:
            raise ValueError(f"init_from.{name}: expected tensors under {name}. in {path}, found none")
        load_strict(part, own, f"{path}, {name}")
