"""A folder of golden numbers: its configuration, arrays and weights, and the models loaded from it."""

import copy
import json
import tarfile
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor, nn

from echat.devices import DTYPES
from echat.infer.engine import Engine
from echat.infer.loading import load, load_released
from echat.model.speech_llm import SpeechLLM
from echat.model_files import TOKEN2WAV_FOLDER
from echat.release.conversion import convert
from echat.release.cosyvoice_conversion import convert_cosyvoice
from echat.release.cosyvoice_weights import flow_config, fold_vocoder, read_weights, vocoder_config
from echat.release.osum_weights import stated_heads
from echat.token2wav.token2wav import Token2Wav, Token2WavConfig
from echat.verify.comparison import Backend


@dataclass(frozen=True)
class GoldenFolder:
    """A folder and the backend to check it on. Files are read when first needed."""

    folder: Path
    backend: Backend
    converted: bool = False  # are weights converted to a model folder and loaded from there?

    @cached_property
    def config(self) -> dict[str, Any]:
        """All sizes and ids."""
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


@dataclass(frozen=True)
class GoldenModel(GoldenFolder):
    """A golden folder of the dialogue model."""

    @cached_property
    def engine(self) -> Engine:
        """The checkpoint on the backend, with the decoding of the reference and the ids of `config.json`."""
        config = self.config
        weights, llm_folder = self.weights("*.pt"), self.folder / config["llm_path"]
        if self.converted:
            engine = converted_engine(weights, llm_folder, self.backend)
        else:
            engine = load_released(weights, llm_folder, "reference", **stated_heads(weights))
        vocabulary = replace(
            engine.vocabulary,
            unknown=config["ids"]["unk_label"],
            text_end=config["ids"]["text_eos"],
            age_trigger=tuple(config["generation"]["text_trigger_sequence"]),
            age_allowed=tuple(config["generation"]["text_trigger_allowed"]),
        )
        model = engine.model.to(self.backend.device, self.backend.dtype)
        return replace(engine, model=model, vocabulary=vocabulary)

    @property
    def model(self) -> SpeechLLM:
        return self.engine.model

    def mel(self, wave: str) -> Tensor:
        """The recorded log-mel of a waveform by name."""
        return self._frontend[f"{wave}_logmel"]

    @cached_property
    def _frontend(self) -> dict[str, Tensor]:
        return self.arrays("frontend.npz")


@dataclass(frozen=True)
class GoldenToken2Wav(GoldenFolder):
    """A golden folder of the synthesis."""

    @cached_property
    def exact(self) -> Token2Wav:
        """The tiny networks in float32, on the device."""
        flow, vocoder = self.weights("*flow.pt"), self.weights("*hift.pt")
        if self.converted:
            model = converted_token2wav(flow, vocoder, self.config)
        else:
            config = Token2WavConfig(
                flow=flow_config(self.config["flow"]), vocoder=vocoder_config(self.config["hift"])
            )
            model = Token2Wav(config).eval()
            model.flow.load_state_dict(read_weights(flow))
            model.vocoder.load_state_dict(fold_vocoder(read_weights(vocoder)))
        return model.requires_grad_(False).to(self.backend.device)

    @cached_property
    def model(self) -> Token2Wav:
        """The networks in the precision of the backend; only linear layers of the flow are in bfloat16.

        The vocoder stays in float32, and so does the flow before it where audio is compared: pitch is summed
        up to phases, so that rounding gives different audio, not less exact audio.
        """
        if not self.backend.is_bf16:
            return self.exact
        model = copy.deepcopy(self.exact)
        round_linears(model.flow)
        return model

    def inputs(self, name: str) -> dict[str, Tensor]:
        """The arrays of an `.npz`, on the device of the networks."""
        return {key: value.to(self.backend.device) for key, value in self.arrays(name).items()}

    def cases(self, name: str) -> dict[str, dict[str, Tensor]]:
        """The arrays called `case.name`, by case."""
        found: dict[str, dict[str, Tensor]] = {}
        for key, value in self.inputs(name).items():
            case, dot, rest = key.partition(".")
            if dot:
                found.setdefault(case, {})[rest] = value
        return found


def round_linears(module: nn.Module) -> None:
    """Linear layers compute in bfloat16 between float32 inputs and outputs."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            layer.bfloat16()
            layer.register_forward_pre_hook(lambda _, inputs: (inputs[0].bfloat16(),))
            layer.register_forward_hook(lambda _, inputs, output: output.float())


# --- Weights converted to a model folder, and loaded from there


def converted_engine(weights: Path, llm_folder: Path, backend: Backend) -> Engine:
    """A released file, converted to a model folder in the precision of the backend; reference decoding."""
    with TemporaryDirectory(prefix="echat-") as scratch:
        folder = Path(scratch) / "model"
        convert(weights, llm_folder, folder, dtype=DTYPES[backend.precision], profile="reference")
        return load(folder, str(backend.device), backend.dtype)


def converted_token2wav(flow: Path, vocoder: Path, config: dict[str, Any]) -> Token2Wav:
    """Released networks, packed into a tar of the released form and converted from it."""
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
