"""A folder of golden numbers: its configuration, arrays and weights, and where they are to be reproduced."""

import json
import tarfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor

from echat.checkpoint import TOKEN2WAV_FOLDER
from echat.infer.engine import Engine
from echat.infer.loading import load
from echat.release.conversion import DTYPES, convert
from echat.release.cosyvoice_conversion import convert_cosyvoice
from echat.token2wav.token2wav import Token2Wav
from echat.verify.comparison import Backend


@dataclass(frozen=True)
class GoldenFolder:
    """Parts are read when first needed."""

    folder: Path
    backend: Backend
    converted: bool = False  # whether weights first become a model folder and are loaded from there

    @cached_property
    def config(self) -> dict[str, Any]:
        """Every size and id used."""
        return self.read_json("config.json")

    def read_json(self, name: str) -> Any:
        return json.loads((self.folder / name).read_text(encoding="utf-8"))

    def arrays(self, name: str) -> dict[str, Tensor]:
        """All arrays of an `.npz`, on the CPU; 0-dimensional ones too."""
        with np.load(self.folder / name) as archive:
            return {key: torch.from_numpy(np.asarray(archive[key])) for key in archive.files}

    def weights(self, pattern: str) -> Path:
        """The one file of weights whose name matches."""
        found = sorted(self.folder.glob(pattern))
        if len(found) != 1:
            names = ", ".join(path.name for path in found) or "none"
            raise ValueError(
                f"{self.folder}: expected one file {pattern}, found {names}; complete the folder of golden "
                "numbers"
            )
        return found[0]


# --- The weights of golden folders taken the long way: converted to a model folder, and loaded from there.


def converted_engine(weights: Path, llm_folder: Path, backend: Backend) -> Engine:
    """A released file through a model folder of the place's precision; decodes as the reference does."""
    with TemporaryDirectory(prefix="echat-") as scratch:
        folder = Path(scratch) / "model"
        convert(weights, llm_folder, folder, dtype=DTYPES[backend.precision], profile="reference")
        return load(folder, str(backend.device), backend.dtype)


def converted_token2wav(flow: Path, vocoder: Path, config: dict[str, Any]) -> Token2Wav:
    """Released networks through a tar of the released form and the folder made of it."""
    with TemporaryDirectory(prefix="echat-") as scratch:
        home = Path(scratch)
        (home / "cosyvoice.yaml").write_text(cosyvoice_yaml(config), encoding="utf-8")
        with tarfile.open(home / "release.tar", "w") as tar:
            for path, name in ((flow, "flow.pt"), (vocoder, "hift.pt"), (home / "cosyvoice.yaml", None)):
                tar.add(path.resolve(), f"release/{name or path.name}")
        convert_cosyvoice(home / "release.tar", home)
        return Token2Wav.from_folder(home / TOKEN2WAV_FOLDER)


def cosyvoice_yaml(config: dict[str, Any]) -> str:
    """Sizes of a golden folder in the form that the release states them."""
    flow = config["flow"]
    decoder = {"cfm_params": flow["cfm"], "estimator": flow["estimator"]}
    return yaml.safe_dump({"flow": flow | {"decoder": decoder}, "hift": config["hift"]})
