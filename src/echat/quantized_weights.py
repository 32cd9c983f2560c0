"""Quantized weights on disk: some tensors of a safetensors file as integer codes and scales.

`config.yaml` beside the file declares which: `quantization: {glob of names: scheme}`, the first glob that
matches decides. A weight `W` of scheme int8 lies there as `W.int8` (codes, of its shape) and `W.scale` (one
per row); one of int4-32 as `W.int4` (two codes a byte) and `W.scale` (one per 32 inputs of a row). Vectors,
short rows and what no glob matches are stored plain; a shape that int4 cannot take is stored as int8.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated

import torch
from pydantic import AfterValidator
from torch import Tensor, nn

from echat.checkpoint import COPY_AGAIN, CheckpointError, read_tensors, write_tensors
from echat.kernels.weight_quantization import (
    INT4_SCALE_DTYPE,
    INT8_SCALE_DTYPE,
    dequantize,
    pack_nibbles,
    quantize_int4,
    quantize_int4_calibrated,
    quantize_int8,
    unpack_nibbles,
)

PLAIN, INT8 = "plain", "int8"
INT4_GROUP_OF = {f"int4-{group}": group for group in (32, 64, 128)}
SCHEMES = (PLAIN, INT8, *INT4_GROUP_OF)
CODES_INT8, CODES_INT4, SCALE = ".int8", ".int4", ".scale"  # endings of the names of the stored tensors
SHORTEST_ROW = 16  # values that share a scale; shorter rows gain nothing


def _check_schemes(declared: dict[str, str]) -> dict[str, str]:
    for scheme in declared.values():
        if scheme not in SCHEMES:
            raise ValueError(
                f"expected one of the schemes {', '.join(SCHEMES)}, found {scheme!r}; another version of "
                "echat may have written this folder: install that, or quantize the original again"
            )
    return declared


def declared_quantization(values: Mapping[str, object], where: str) -> dict[str, str]:
    """What the parsed `config.yaml` of any network declares. Raises CheckpointError."""
    found = values.get("quantization") or {}
    if not isinstance(found, dict):
        raise CheckpointError(
            f"{where}: expected quantization as globs of names with a scheme each, found {found!r}; "
            f"{COPY_AGAIN}"
        )
    try:
        return _check_schemes(found)
    except ValueError as error:
        raise CheckpointError(f"{where}, quantization: {error}") from error


Quantization = Annotated[dict[str, str], AfterValidator(_check_schemes)]  # glob of tensor names -> scheme


@dataclass(frozen=True)
class StoredWeights:
    """The tensors of a file, quantized ones in float32, and the scales of those that are stored in 4 bits."""

    tensors: dict[str, Tensor]
    int4_scales: dict[str, Tensor]  # (out, groups) each

    def mark_int4(self, module: nn.Module) -> None:
        """Give the weights of `module`, which were made from these tensors, their scales: packing for int4
        then finds the stored codes instead of rounding once more."""
        for name, scale in self.int4_scales.items():
            module.get_parameter(name).int4_scale = scale  # type: ignore[attr-defined]


def scheme_of(name: str, shape: Sequence[int], declared: Mapping[str, str]) -> str:
    """How a floating tensor of this name and shape is stored."""
    scheme = next((scheme for glob, scheme in declared.items() if fnmatchcase(name, glob)), PLAIN)
    if scheme == PLAIN or len(shape) < 2 or math.prod(shape[1:]) < SHORTEST_ROW:
        return PLAIN
    group = INT4_GROUP_OF.get(scheme)
    fits = group is None or (len(shape) == 2 and shape[1] % group == 0)
    return scheme if fits else INT8


def stored_bytes(tensor: Tensor, scheme: str) -> int:
    """Of codes and scales, or of the tensor as it is."""
    if scheme == PLAIN:
        return tensor.nbytes
    if scheme == INT8:
        return tensor.numel() + len(tensor) * INT8_SCALE_DTYPE.itemsize
    return tensor.numel() // 2 + tensor.numel() // INT4_GROUP_OF[scheme] * INT4_SCALE_DTYPE.itemsize


def write_quantized(
    path: Path,
    tensors: Mapping[str, Tensor],
    declared: Mapping[str, str],
    prefix: str = "",
    moments: Mapping[str, Tensor] | None = None,
) -> None:
    """Write named tensors, those that `declared` matches quantized, the others as they are.

    `moments`: second moments of the inputs of weights, for rounding to 4 bits by calibration.
    """
    stored: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        scheme = scheme_of(prefix + name, tensor.shape, declared) if tensor.is_floating_point() else PLAIN
        if scheme != PLAIN and not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(
                f"{path}: expected finite numbers to quantize, found others in {name}; {COPY_AGAIN}"
            )
        stored |= _encode(name, tensor, scheme, (moments or {}).get(name))
    write_tensors(path, stored)


def _encode(name: str, tensor: Tensor, scheme: str, moments: Tensor | None) -> dict[str, Tensor]:
    if scheme == PLAIN:
        return {name: tensor}
    if scheme == INT8:
        codes, scale = quantize_int8(tensor)
        return {name + CODES_INT8: codes, name + SCALE: scale}
    group = INT4_GROUP_OF[scheme]
    if moments is None:
        codes, scale = quantize_int4(tensor, group)
    else:
        codes, scale = quantize_int4_calibrated(tensor, moments, group)
    return {name + CODES_INT4: pack_nibbles(codes), name + SCALE: scale}


def read_weights(path: Path, declared: Mapping[str, str] | None, prefix: str = "") -> StoredWeights:
    """Read a file of plain or quantized weights; the plain ones stay memory-mapped.

    `declared`: what `config.yaml` says, about names that begin with `prefix`; the file must agree. None: take
    the file as it is. Raises CheckpointError.
    """
    found = read_tensors(path)
    tensors: dict[str, Tensor] = {}
    int4_scales: dict[str, Tensor] = {}
    used: set[str] = set()
    for stored_name, stored in found.items():
        name, ending = _split(stored_name, found)
        if not ending:
            continue
        codes, scale = _decode(name, ending, stored, found.get(name + SCALE), path)
        scheme = INT8 if ending == CODES_INT8 else f"int4-{codes.shape[1] // scale.shape[1]}"
        _check_declared(name, scheme, codes.shape, declared, prefix, path)
        tensors[name] = dequantize(codes, scale)
        if ending == CODES_INT4:
            int4_scales[name] = scale
        used |= {stored_name, name + SCALE}
    for name, tensor in found.items():
        if name not in used:
            if tensor.is_floating_point():
                _check_declared(name, PLAIN, tensor.shape, declared, prefix, path)
            tensors[name] = tensor
    return StoredWeights(tensors, int4_scales)


def _split(stored_name: str, found: Mapping[str, Tensor]) -> tuple[str, str]:
    """The weight's own name, and the ending that says how it is coded; empty for a plain tensor."""
    for ending in (CODES_INT8, CODES_INT4):
        if stored_name.endswith(ending):
            return stored_name.removesuffix(ending), ending
    return stored_name, ""


def _decode(
    name: str, ending: str, stored: Tensor, scale: Tensor | None, path: Path
) -> tuple[Tensor, Tensor]:
    """Codes and scales of one weight, checked."""
    is_int4 = ending == CODES_INT4
    dtypes = (torch.uint8, INT4_SCALE_DTYPE) if is_int4 else (torch.int8, INT8_SCALE_DTYPE)
    shape = tuple(stored.shape)
    found = "none" if scale is None else f"{scale.dtype} {tuple(scale.shape)}"
    fits = scale is not None and (stored.dtype, scale.dtype) == dtypes and _fits(shape, scale, is_int4)
    if scale is None or not fits:
        raise CheckpointError(
            f"{path}: expected {dtypes[0]} codes and {dtypes[1]} scales of {name}, found codes "
            f"{stored.dtype} {shape} and scales {found}; {COPY_AGAIN}"
        )
    if not bool(torch.isfinite(scale).all()):
        raise CheckpointError(f"{path}: expected finite scales of {name}, found others; {COPY_AGAIN}")
    return (unpack_nibbles(stored) if is_int4 else stored), scale


def _fits(shape: Sequence[int], scale: Tensor, is_int4: bool) -> bool:
    """Whether there is a scale for every row, or for every group of packed codes of this shape."""
    if not is_int4:
        return len(shape) >= 2 and scale.shape == (shape[0],)
    is_grouped = len(shape) == 2 and scale.ndim == 2 and len(scale) == shape[0]
    return is_grouped and any(scale.shape[1] * group == 2 * shape[1] for group in INT4_GROUP_OF.values())


def _check_declared(
    name: str, scheme: str, shape: Sequence[int], declared: Mapping[str, str] | None, prefix: str, path: Path
) -> None:
    if declared is None:
        return
    expected = scheme_of(prefix + name, shape, declared)
    if scheme != expected:
        raise CheckpointError(
            f"{path}: expected {name} stored as {expected}, as quantization in config.yaml declares, found "
            f"{scheme}; config.yaml and the weights beside it must come from the same model, {COPY_AGAIN}"
        )


def float_dtype(path: Path) -> torch.dtype:
    """The precision of what is stored plain; first pages are all that is read."""
    for name, tensor in read_tensors(path).items():
        if tensor.is_floating_point() and not name.endswith(SCALE):
            return tensor.dtype
    return torch.float32
