"""A folder of golden numbers: its configuration, arrays and weights, and where they are to be reproduced."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from echat.infer.place import Place


@dataclass(frozen=True)
class GoldenFolder:
    """Parts are read when first needed."""

    folder: Path
    place: Place
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
