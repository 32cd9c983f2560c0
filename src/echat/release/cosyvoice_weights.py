"""The released CosyVoice-300M-25Hz `flow.pt` and `hift.pt`, read as they are.

Our modules carry the released names, so a name map is only needed for the weight-normalised convolutions of
the vocoder, whose magnitude and direction are folded into one weight. Sizes come from `cosyvoice.yaml`
beside the weights, which is read and never executed.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from echat.checkpoint import load_strict
from echat.safe_loading import read_torch_file
from echat.token2wav.estimator import EstimatorConfig
from echat.token2wav.flow import FlowConfig
from echat.token2wav.hift.vocoder import F0PredictorConfig, VocoderConfig
from echat.token2wav.token2wav import Token2Wav, Token2WavConfig
from echat.token2wav.token_encoder import TokenEncoderConfig

# name of (magnitude, direction) behind the name of a weight-normalised convolution
WEIGHT_NORM_LAYOUTS: dict[str, tuple[str, str]] = {
    "old": ("weight_g", "weight_v"),
    "new": ("parametrizations.weight.original0", "parametrizations.weight.original1"),
}


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Named tensors of a `.pt` file, without executing anything in it."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: expected released weights, found no file; copy flow.pt and hift.pt there")
    tensors = read_torch_file(path)
    if not isinstance(tensors, dict) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise ValueError(f"{path}: expected a dictionary of name -> tensor, found {type(tensors).__name__}")
    return tensors


def fold_vocoder(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Vocoder weights in our layout, from the old, the new or the already folded one.

    A `generator.` prefix is taken off; tensors of a discriminator, saved beside it, are left out.
    """
    named = {
        name.replace("generator.", ""): tensor
        for name, tensor in tensors.items()
        if not name.startswith("discriminator.")
    }
    for magnitude, direction in WEIGHT_NORM_LAYOUTS.values():
        for name in [name for name in named if name.endswith("." + magnitude)]:
            prefix = name.removesuffix(magnitude)
            if prefix + direction not in named:
                raise ValueError(
                    f"{name}: expected {prefix + direction} beside it, found none; the file is incomplete"
                )
            named[prefix + "weight"] = _fold(named.pop(name), named.pop(prefix + direction))
    return named


def _fold(magnitude: Tensor, direction: Tensor) -> Tensor:
    """`g v / ||v||`, the norm over all axes but the first."""
    norm = torch.linalg.vector_norm(direction, dim=tuple(range(1, direction.ndim)), keepdim=True)
    return direction * (magnitude / norm)


def flow_config(values: Mapping[str, Any]) -> FlowConfig:
    """Flow sizes from the names the released recipe uses (`flow` of a fixture's config.json has them too)."""
    encoder, cfm, estimator = values["encoder"], values["cfm"], values["estimator"]
    return FlowConfig(
        input_size=values["input_size"],
        output_size=values["output_size"],
        spk_embed_dim=values["spk_embed_dim"],
        vocab_size=values["vocab_size"],
        input_frame_rate=values["input_frame_rate"],
        regulator_layers=len(values["length_regulator"]["sampling_ratios"]),
        sigma_min=float(cfm["sigma_min"]),
        training_cfg_rate=cfm["training_cfg_rate"],
        inference_cfg_rate=cfm["inference_cfg_rate"],
        t_scheduler=cfm["t_scheduler"],
        encoder=TokenEncoderConfig(**_known(encoder, TokenEncoderConfig)),
        estimator=EstimatorConfig(**_known(estimator, EstimatorConfig)),
    )


def vocoder_config(values: Mapping[str, Any]) -> VocoderConfig:
    """Vocoder sizes from the names the released recipe uses."""
    return VocoderConfig(
        **_known(values, VocoderConfig, leave_out={"f0_predictor"}),
        istft_n_fft=values["istft_params"]["n_fft"],
        istft_hop=values["istft_params"]["hop_len"],
        f0_predictor=F0PredictorConfig(**_known(values["f0_predictor"], F0PredictorConfig)),
    )


def _known(values: Mapping[str, Any], cls: Any, leave_out: set[str] | None = None) -> dict[str, Any]:
    return {k: v for k, v in values.items() if k in cls.model_fields and k not in (leave_out or set())}


class _PermissiveLoader(yaml.SafeLoader):
    """Reads every tag, those of HyperPyYAML and of Python among them, as plain data."""


def _plain(loader: _PermissiveLoader, _suffix: str, node: yaml.Node) -> Any:
    if isinstance(node, yaml.MappingNode):
        return loader.construct_mapping(node, deep=True)
    if isinstance(node, yaml.SequenceNode):
        return loader.construct_sequence(node, deep=True)
    assert isinstance(node, yaml.ScalarNode)
    return loader.construct_scalar(node)


_PermissiveLoader.add_multi_constructor("", _plain)  # all that the safe loader does not know


def read_cosyvoice_yaml(text: str) -> tuple[FlowConfig, VocoderConfig]:
    """Sizes from the release's `cosyvoice.yaml`: tags are plain values, `!ref <name>` a look-up."""
    try:
        values = yaml.load(text, _PermissiveLoader)  # a safe loader: nothing is imported or called
        return _sizes(_resolve(values, values))
    except (yaml.YAMLError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(
            "cosyvoice.yaml: expected the sizes of flow and hift as the release states them, found "
            f"{type(error).__name__} {' '.join(str(error).split())[:120]}; take the file that came with the "
            "weights"
        ) from error


def _sizes(values: Mapping[str, Any]) -> tuple[FlowConfig, VocoderConfig]:
    flow, hift = values["flow"], values["hift"]
    cfm = flow["decoder"]["cfm_params"]
    cfm = cfm.get("content", cfm) if isinstance(cfm, dict) else cfm
    vocoder = vocoder_config(hift)
    mel = {"sampling_rate": vocoder.mel.rate, "hop": vocoder.mel.hop}
    sizes = flow_config(flow | {"cfm": cfm, "estimator": flow["decoder"]["estimator"]})
    return sizes.model_copy(update=mel), vocoder


def _resolve(value: Any, top: Mapping[str, Any]) -> Any:
    if isinstance(value, dict):
        return {key: _resolve(item, top) for key, item in value.items()}
    if isinstance(value, list):
        return [_resolve(item, top) for item in value]
    if isinstance(value, str) and (match := re.fullmatch(r"<(\w+)>", value)) and match[1] in top:
        return _resolve(top[match[1]], top)
    return value


def load_cosyvoice(folder: str | Path) -> Token2Wav:
    """The released `flow.pt` and `hift.pt`, with the sizes of a `cosyvoice.yaml` beside them."""
    folder = Path(folder)
    config = Token2WavConfig()
    if (folder / "cosyvoice.yaml").is_file():
        flow, vocoder = read_cosyvoice_yaml((folder / "cosyvoice.yaml").read_text(encoding="utf-8"))
        config = Token2WavConfig(flow=flow, vocoder=vocoder)
    token2wav = Token2Wav(config, folder)
    load_strict(token2wav.flow, read_weights(folder / "flow.pt"), str(folder / "flow.pt"))
    load_strict(token2wav.vocoder, fold_vocoder(read_weights(folder / "hift.pt")), str(folder / "hift.pt"))
    return token2wav.eval()
