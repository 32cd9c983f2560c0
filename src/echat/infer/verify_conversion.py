"""The weights of golden folders taken the long way: converted to a model folder, and loaded from there."""

import tarfile
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from echat.checkpoint import TOKEN2WAV_FOLDER
from echat.infer.conversion import DTYPES, convert
from echat.infer.engine import Engine
from echat.infer.loading import load
from echat.infer.place import Place
from echat.token2wav.cosyvoice_folder import convert_cosyvoice
from echat.token2wav.token2wav import Token2Wav


def converted_engine(weights: Path, llm_folder: Path, place: Place) -> Engine:
    """A released file through a model folder of the place's precision; decodes as the reference does."""
    with TemporaryDirectory(prefix="echat-") as scratch:
        folder = Path(scratch) / "model"
        convert(weights, llm_folder, folder, dtype=DTYPES[place.precision], profile="reference")
        return load(folder, str(place.device), place.dtype)


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
