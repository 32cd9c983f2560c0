"""Model folders as Hugging Face lays them out: `config.json` and one or several safetensors files."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from echat.checkpoint import CheckpointError, read_tensors
from echat.foreign import read_json

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"  # names the file of each tensor, when there are several


def read_config(folder: Path) -> dict[str, Any]:
    """The parsed `config.json`; empty when there is none."""
    path = folder / CONFIG
    return read_json(path) if path.is_file() else {}


def read_folder_tensors(folder: Path, wanted: Callable[[str], bool] = lambda name: True) -> dict[str, Tensor]:
    """The wanted tensors under their own names, memory-mapped. Raises CheckpointError where a file is not
    there."""
    if (folder / WEIGHTS).is_file():
        files = [WEIGHTS]
    elif (folder / INDEX).is_file():
        places = read_json(folder / INDEX).get("weight_map")
        if not isinstance(places, dict) or not all(_is_here(file) for file in places.values()):
            raise CheckpointError(
                f"{folder / INDEX}: expected weight_map with the file of this folder for each tensor, found "
                "none; download the whole model folder"
            )
        files = sorted({file for name, file in places.items() if wanted(name)})
    else:
        raise CheckpointError(
            f"{folder}: expected {WEIGHTS} or {INDEX}, found neither; download the whole model folder "
            "(weights in .bin files are pickled code, take the safetensors)"
        )
    found = {name: tensor for file in files for name, tensor in read_tensors(folder / file).items()}
    return {name: tensor for name, tensor in found.items() if wanted(name)}


def _is_here(file: object) -> bool:
    return isinstance(file, str) and Path(file).name == file
