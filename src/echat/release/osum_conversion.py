"""A released `.pt` -> the dialogue part of a model folder, tensor by tensor.

Never is more than a part of the model loaded: the `.pt` is mapped, each tensor is cast and written in
pieces, and the mapping is opened anew after each part, which gives back the pages that were read.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from echat.checkpoint import KeyReport, stream_tensors
from echat.config import save_config
from echat.dialogue.tasks import Profile
from echat.model.model_folder import ModelFolderConfig, check_tokenizer
from echat.model.speech_llm import SpeechLLM, model_on_meta
from echat.model.text_tokenizer import TextTokenizer
from echat.model_files import CONFIG_FILE, TOKENIZER_FOLDER, WEIGHTS_FILE
from echat.release.osum_weights import (
    BELONG_TOGETHER,
    KeyMap,
    check_alias,
    infer_config,
    read_llm_config,
    read_state,
    with_position_tables,
)

PART_BYTES = 1 << 30  # of the released file that are mapped and read before the mapping is opened anew


@dataclass(frozen=True)
class OsumReport:
    """What became of each key of a released file."""

    file: str
    keys: int
    parameters: int
    values: int
    stored: tuple[str, ...]  # precisions in the file
    dtype: str  # precision written
    aliases: dict[str, str]  # name -> key with the same values
    unused: tuple[str, ...]
    tables: dict[str, float]  # position table -> distance of the stored values from the computed ones
    shapes: KeyReport

    def __str__(self) -> str:
        names = dict.fromkeys(self.aliases.values())
        tied = ", ".join(f"{sum(k == key for k in self.aliases.values())} of {key}" for key in names)
        tables = ", ".join(f"{name} {error:.1e}" for name, error in self.tables.items())
        return "\n".join(
            (
                f"{self.file}: {self.keys} keys, {self.shapes}",
                f"  {self.parameters} parameters of {self.values:,} values, "
                f"{' and '.join(self.stored)} -> {self.dtype}",
                f"  {len(self.aliases)} aliases agree" + (f": {tied}" if tied else ""),
                f"  {len(self.unused)} unused" + (f": {', '.join(self.unused)}" if self.unused else ""),
                f"  {len(self.tables)} position tables computed anew"
                + (f", largest difference: {tables}" if tables else ""),
            )
        )


def convert_osum(
    weights: Path,
    llm_folder: Path,
    folder: Path,
    dtype: torch.dtype = torch.bfloat16,
    profile: Profile = "osum",
    encoder_heads: int | None = None,
    adapter_heads: int | None = None,
) -> OsumReport:
    """Write `config.yaml`, `model.safetensors` and `tokenizer/` into `folder`, strictly: nothing missing,
    nothing left over, aliases equal."""
    state = read_state(weights)
    shapes = {name: tensor.shape for name, tensor in state.items()}
    config = infer_config(shapes, read_llm_config(llm_folder), encoder_heads, adapter_heads)
    config, tables = with_position_tables(config, state, str(weights))
    tokenizer = TextTokenizer.from_folder(llm_folder)
    check_tokenizer(tokenizer, config, llm_folder)
    keys, model = KeyMap.of(state), model_on_meta(config)
    report = _report(weights, state, keys, tables, model, dtype)
    report.shapes.require(str(weights), type(model).__name__, BELONG_TOGETHER)
    del state
    for alias, key in keys.aliases.items():
        check_alias(read_state(weights), alias, key, str(weights))
    tokenizer.save(folder / TOKENIZER_FOLDER)
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    stream_tensors(folder / WEIGHTS_FILE, expected, dtype, _stream_parameters(weights, keys))
    save_config(ModelFolderConfig(name=weights.stem, profile=profile, model=config), folder / CONFIG_FILE)
    return report


def _report(
    weights: Path,
    state: dict[str, Tensor],
    keys: KeyMap,
    tables: dict[str, float],
    model: SpeechLLM,
    dtype: torch.dtype,
) -> OsumReport:
    parameters = keys.parameters(state)
    return OsumReport(
        file=weights.name,
        keys=len(state),
        parameters=len(parameters),
        values=sum(tensor.numel() for tensor in parameters.values()),
        stored=tuple(sorted({_name(tensor.dtype) for tensor in parameters.values()})),
        dtype=_name(dtype),
        aliases=keys.aliases,
        unused=keys.unused,
        tables=tables,
        shapes=KeyReport.compare(model.state_dict(), parameters),
    )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _stream_parameters(weights: Path, keys: KeyMap) -> Iterator[tuple[str, Tensor]]:
    """Our name and tensor of every parameter, in the order of the file; the mapping is opened anew after each
    `PART_BYTES`."""
    state = read_state(weights)
    read = 0
    for ours, key in keys.sources.items():
        if read > PART_BYTES:
            del state  # before the next one is opened
            state, read = read_state(weights), 0
        read += state[key].nbytes
        yield ours, state[key]
