"""Quantized copies of model folders: every part of the model in the scheme chosen for it, with its error."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from torch import Tensor

from echat.checkpoint import atomic_path
from echat.config import load_config, nearest, save_config
from echat.model.model_folder import ModelFolderConfig
from echat.model_files import (
    CONFIG_FILE,
    FLOW_FILE,
    SPEECH_TOKENIZER_FOLDER,
    TOKEN2WAV_FOLDER,
    VOCODER_FILE,
    WEIGHTS_FILE,
)
from echat.quantized_weights import (
    INT4_GROUP_OF,
    INT8,
    PLAIN,
    SCHEMES,
    read_weights,
    scheme_of,
    stored_bytes,
    write_quantized,
)
from echat.token2wav.speech_tokenizer import SpeechTokenizerConfig
from echat.token2wav.token2wav import Token2WavConfig

# Part -> globs of its tensors, the more special ones first; "" is the folder of the dialogue model.
PARTS: dict[str, dict[str, tuple[str, ...]]] = {
    "": {
        "encoder": ("encoder.*", "subsampler.*"),
        "adapter": ("adapter.*", "projection.*"),
        "layers": ("llm.model.layers.*",),
        "tables": ("llm.model.embed_tokens.*", "speech_embedding.*"),
        "heads": ("llm.lm_head.*", "speech_head.*"),
    },
    TOKEN2WAV_FOLDER: {"flow": ("flow.*",), "vocoder": ("hift.*",)},
    SPEECH_TOKENIZER_FOLDER: {SPEECH_TOKENIZER_FOLDER: ("*",)},
}
NetworkConfig = ModelFolderConfig | Token2WavConfig | SpeechTokenizerConfig
NETWORKS: dict[
    str, tuple[type[NetworkConfig], dict[str, str]]
] = {  # folder -> its config, file -> prefix of names
    "": (ModelFolderConfig, {WEIGHTS_FILE: ""}),
    TOKEN2WAV_FOLDER: (Token2WavConfig, {FLOW_FILE: "flow.", VOCODER_FILE: "hift."}),
    SPEECH_TOKENIZER_FOLDER: (SpeechTokenizerConfig, {WEIGHTS_FILE: ""}),
}
CODEBOOK = "quantizer.*"  # ids are nearest entries: it stays as it is
DEFAULT = {name: INT8 for parts in PARTS.values() for name in parts} | {"layers": "int4-32"}


@dataclass(frozen=True)
class PartReport:
    """What quantization does to one part."""

    part: str
    schemes: tuple[str, ...]
    values: int
    bytes_before: int
    bytes_after: int
    error: float  # root of the squared error over that of the weights

    def __str__(self) -> str:
        return (
            f"{self.part:<18}{', '.join(self.schemes):<22}{self.values / 1e6:8.2f} M values "
            f"{self.bytes_before / 1e6:9.2f} -> {self.bytes_after / 1e6:7.2f} MB, "
            f"relative error {self.error:.4f}"
        )


def parse_choices(choices: Sequence[str]) -> dict[str, str]:
    """`part=scheme` or `glob=scheme` words over the defaults; globs are of tensor names and come first."""
    parts = {name for found in PARTS.values() for name in found}
    globs: dict[str, str] = {}
    chosen = dict(DEFAULT)
    for choice in choices:
        name, _, scheme = choice.partition("=")
        if scheme not in SCHEMES:
            raise ValueError(
                f"{choice}: expected {name or 'PART'}= and one of {', '.join(SCHEMES)}, found {scheme!r}"
            )
        if "." in name or "*" in name:
            globs[name] = scheme
        elif name in parts:
            chosen[name] = scheme
        else:
            raise ValueError(
                f"{choice}: {name!r} is no part, {nearest(name, parts)}; or give a glob of names"
            )
    return globs | chosen


def is_int4(name: str, choices: Mapping[str, str]) -> bool:
    """Whether a weight of the dialogue model is meant for 4 bits, where its shape allows."""
    return scheme_of(name, (1, max(INT4_GROUP_OF.values())), _declared("", choices)) in INT4_GROUP_OF


def quantize_folder(
    source: Path, output: Path, choices: Mapping[str, str], moments: Mapping[str, Tensor] | None = None
) -> list[PartReport]:
    """Write a copy of a model folder with its weights in these schemes; it appears whole or not at all.

    `moments`: second moments of the inputs of layers of the dialogue model, from a calibration.
    """
    if not (source / CONFIG_FILE).is_file():
        raise ValueError(f"{source}: expected a model folder with {CONFIG_FILE}, found none; check the path")
    if output.exists():
        raise ValueError(f"{output}: expected a new folder, found an existing one; give another name")
    reports: list[PartReport] = []
    networks = {name: of for name, of in NETWORKS.items() if (source / name / CONFIG_FILE).is_file()}
    written_anew = {source / name / file for name, (_, files) in networks.items() for file in files}
    with atomic_path(output) as temporary:
        shutil.copytree(
            source,
            temporary,
            ignore=lambda folder, names: [name for name in names if Path(folder, name) in written_anew],
        )
        for name, (config_class, files) in networks.items():
            own = None if name else moments
            at = (source / name, temporary / name)
            reports += _quantize_network(*at, name, config_class, files, choices, own)
    return reports


def _quantize_network(
    source: Path,
    output: Path,
    folder: str,
    config_class: type[NetworkConfig],
    files: Mapping[str, str],
    choices: Mapping[str, str],
    moments: Mapping[str, Tensor] | None,
) -> list[PartReport]:
    config = load_config(config_class, source / CONFIG_FILE)
    declared = _declared(folder, choices)
    reports: list[PartReport] = []
    for file, prefix in files.items():
        plain = read_weights(source / file, config.quantization, prefix).tensors
        write_quantized(output / file, plain, declared, prefix, moments)
        after = read_weights(output / file, declared, prefix).tensors
        reports += _reports(folder, plain, after, declared, prefix)
    save_config(config.model_copy(update={"quantization": declared}), output / CONFIG_FILE)
    return reports


def _declared(folder: str, choices: Mapping[str, str]) -> dict[str, str]:
    """Glob -> scheme of one folder's networks; what stays plain at the end of the list needs no line."""
    declared = {name: scheme for name, scheme in choices.items() if "." in name or "*" in name}
    if folder == SPEECH_TOKENIZER_FOLDER:
        declared = {CODEBOOK: PLAIN}
    for part, globs in PARTS[folder].items():
        if choices[part] != PLAIN:
            declared |= {glob: choices[part] for glob in globs}
    return declared if set(declared.values()) != {PLAIN} else {}


def _reports(
    folder: str,
    before: Mapping[str, Tensor],
    after: Mapping[str, Tensor],
    declared: Mapping[str, str],
    prefix: str,
) -> list[PartReport]:
    """One line for each part; a tensor belongs to the part whose glob it matches."""
    reports: list[PartReport] = []
    for part, globs in PARTS[folder].items():
        names = [name for name in before if any(fnmatchcase(prefix + name, glob) for glob in globs)]
        if names:
            reports.append(_report(part, names, before, after, declared, prefix))
    return reports


def _report(
    part: str,
    names: Sequence[str],
    before: Mapping[str, Tensor],
    after: Mapping[str, Tensor],
    declared: Mapping[str, str],
    prefix: str,
) -> PartReport:
    schemes = {name: scheme_of(prefix + name, before[name].shape, declared) for name in names}
    error = sum(float((after[name].float() - before[name].float()).square().sum()) for name in names)
    size = sum(float(before[name].float().square().sum()) for name in names)
    return PartReport(
        part,
        tuple(scheme for scheme in SCHEMES if scheme in set(schemes.values())),
        sum(before[name].numel() for name in names),
        sum(before[name].nbytes for name in names),
        sum(stored_bytes(before[name], schemes[name]) for name in names),
        (error / size) ** 0.5 if size else 0.0,
    )
