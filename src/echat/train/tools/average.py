"""Weight averaging ("model soup"): the mean of the weights of several models.

Runs that began from the same weights lie in one valley of the loss, and the middle of it answers unseen
wordings better than any of them (Wortsman et al. 2022, "Model soups").
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch

from echat.checkpoint import atomic_path
from echat.model.model_folder import ModelFolder, load_model, save_model
from echat.model_files import TOKENIZER_FILE, TOKENIZER_FOLDER


def average_models(folders: Sequence[Path]) -> ModelFolder:
    """The first model with the mean of all weights. ValueError where they differ in kind."""
    first = load_model(folders[0])
    sums = {name: tensor.double() for name, tensor in first.model.state_dict().items()}
    for folder in folders[1:]:
        other = load_model(folder)
        _check_same_kind(folders[0], first, folder, other)
        for name, tensor in other.model.state_dict().items():
            sums[name] += tensor.double()
    mean = {name: (sums[name] / len(folders)).to(like) for name, like in first.model.state_dict().items()}
    first.model.load_state_dict(mean, assign=True)  # what was loaded may be a file, mapped
    return first


def _check_same_kind(first_at: Path, first: ModelFolder, other_at: Path, other: ModelFolder) -> None:
    parts = {
        "config": (
            first.config.model_copy(update={"name": ""}),
            other.config.model_copy(update={"name": ""}),
        ),
        "text tokenizer": (_tokenizer(first_at), _tokenizer(other_at)),
    }
    for part, (expected, found) in parts.items():
        if expected != found:
            raise ValueError(
                f"{other_at}: expected the {part} of {first_at}, found another; only runs that began "
                "from the same weights can be averaged"
            )


def _tokenizer(folder: Path) -> object:
    return json.loads((folder / TOKENIZER_FOLDER / TOKENIZER_FILE).read_text(encoding="utf-8"))


def average(output: Path, folders: Sequence[Path]) -> None:
    """Write the model folder of the average."""
    with torch.inference_mode():
        mean = average_models(folders)
    config = mean.config
    with atomic_path(output) as temporary:
        about = (config.profile, config.name, None, config.ctc, config.learned)
        save_model(temporary, mean.model, mean.tokenizer, *about)
