"""`python -m echat.train.tools.average FOLDER MODEL MODEL ...`: the mean of the weights of several models.

Runs that began from the same weights lie in one valley, and the middle of it answers unheard wordings better
than any of them (Wortsman et al. 2022, "Model soups").
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from echat.checkpoint import atomic_path
from echat.errors import Arguments, command
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


@command
def main(arguments: Arguments) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m echat.train.tools.average", description="The mean of the weights of several models."
    )
    parser.add_argument("output", type=Path, help="model folder to write")
    parser.add_argument("models", type=Path, nargs="+", help="model folders, of runs with one beginning")
    options = parser.parse_args(arguments)
    with torch.inference_mode():
        mean = average_models(options.models)
    with atomic_path(options.output) as temporary:
        config = mean.config
        save_model(
            temporary,
            mean.model,
            mean.tokenizer,
            config.profile,
            config.name,
            ctc=config.ctc,
            learned=config.learned,
        )
    print(f"{options.output}: the mean of {len(options.models)} models")


if __name__ == "__main__":
    sys.exit(main())
