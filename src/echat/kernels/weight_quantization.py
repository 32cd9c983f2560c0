"""Quantized weights: integer codes with a scale per row (int8) or per group of inputs of a row (int4).

A weight is `code * scale`, symmetric about zero. Scales are chosen by the squared error over a small grid;
that of int4 has a sign, so that the largest value of a group lies on the sixteenth code, -8. Codes are chosen
for the scale as it is stored, so that its rounding costs nothing extra, and a product of code and scale is
exact in float32: packing for int8 finds the same codes again.

With calibration the rounding error of an input is made up for by the inputs that follow (GPTQ, Frantar et al.
2022): the outputs stay near, not the weights.

Legend: out, in outputs and inputs of a weight; groups = in / group.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

INT8_CODE_MAX = 127
INT4_CODES = (-8, 7)
INT8_SCALE_DTYPE, INT4_SCALE_DTYPE = torch.float16, torch.bfloat16  # the latter as the int4 kernel reads it
SMALLEST_INT8_SCALE = 2.0**-14  # the smallest normal number of fp16: rows below are coded with it
SMALLEST_INT4_SCALE = 1e-12
INT8_CLIPS = (1.0, 0.97, 0.94, 0.9)  # of the largest value of a row that the largest code stands for
INT4_CLIPS = (1.05, 1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7)
DAMPING = 0.01  # of the mean second moment, added to each: inputs that never occurred stay harmless
ROWS_AT_ONCE = 1 << 22  # values, so that the search needs little memory beside the weight


def quantize_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """(out, ...) -> codes int8 of that shape, scales (out,)."""
    pieces = [_search_int8(rows) for rows in _pieces(weight.flatten(1))]
    codes, scale = (torch.cat(parts) for parts in zip(*pieces))
    return codes.view(weight.shape), scale[:, 0]


def quantize_int4(weight: Tensor, group: int) -> tuple[Tensor, Tensor]:
    """(out, in) -> codes int8 in -8..7 of that shape, scales (out, groups)."""
    grouped = weight.reshape(-1, group)
    pieces = [_search_int4(rows) for rows in _pieces(grouped)]
    codes, scale = (torch.cat(parts) for parts in zip(*pieces))
    return codes.view(weight.shape), scale.view(len(weight), -1)


def quantize_int4_calibrated(weight: Tensor, moments: Tensor, group: int) -> tuple[Tensor, Tensor]:
    """As `quantize_int4`, for inputs with second moments (in, in): sums of x xᵀ over a calibration set."""
    left = weight.detach().float().clone()  # what is still to be coded; earlier errors are made up for in it
    influence = _influence(moments)  # row i: how an error of input i moves the best values of later ones
    codes, scales = torch.empty_like(left, dtype=torch.int8), []
    for begin in range(0, weight.shape[1], group):
        end = begin + group
        block, own = left[:, begin:end], influence[begin:end, begin:end]
        _, scale = _search_int4(block, own.diagonal().square().reciprocal())
        step, errors = scale.float()[:, 0], torch.empty_like(block)
        for i in range(group):
            code = round_to_codes(block[:, i], step, INT4_CODES)
            codes[:, begin + i] = code
            errors[:, i] = (block[:, i] - code * step) / own[i, i]
            block[:, i:] -= errors[:, i, None] * own[i, i:]
        left[:, end:] -= errors @ influence[begin:end, end:]
        scales.append(scale)
    return codes, torch.cat(scales, dim=1)


def _influence(moments: Tensor) -> Tensor:
    """The upper Cholesky factor of the inverse of the damped second moments."""
    damped = moments.double().clone()
    diagonal = damped.diagonal()
    diagonal += DAMPING * diagonal.mean().clamp_min(1e-12)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    return torch.linalg.cholesky(inverse, upper=True).float()


def dequantize(codes: Tensor, scale: Tensor) -> Tensor:
    """Codes (out, ...) and scales (out,) or (out, groups) -> float32 of the shape of the codes."""
    groups = scale.shape[1] if scale.ndim == 2 else 1
    values = codes.reshape(len(codes), groups, -1).float() * scale.float().view(len(codes), groups, 1)
    return values.view(codes.shape)


def pack_nibbles(codes: Tensor) -> Tensor:
    """int8 codes in -8..7 (out, in) -> uint8 (out, in / 2); the even input in the lower half of a byte."""
    unsigned = (codes - INT4_CODES[0]).to(torch.uint8)
    return unsigned[:, 0::2] | (unsigned[:, 1::2] << 4)


def unpack_nibbles(packed: Tensor) -> Tensor:
    """The codes that `pack_nibbles` packed."""
    halves = torch.stack([packed & 15, packed >> 4], dim=2).flatten(1)
    return halves.to(torch.int8) + INT4_CODES[0]


def _pieces(rows: Tensor) -> Iterator[Tensor]:
    for piece in rows.detach().split(max(1, ROWS_AT_ONCE // max(1, rows.shape[1]))):
        yield piece.float()


def _search_int8(rows: Tensor) -> tuple[Tensor, Tensor]:
    top = rows.abs().amax(dim=1, keepdim=True) / INT8_CODE_MAX
    scales = [(top * clip).clamp_min(SMALLEST_INT8_SCALE) for clip in INT8_CLIPS]
    return _best(rows, scales, (-INT8_CODE_MAX, INT8_CODE_MAX), INT8_SCALE_DTYPE)


def _search_int4(rows: Tensor, importance: Tensor | None = None) -> tuple[Tensor, Tensor]:
    top = rows.gather(1, rows.abs().argmax(dim=1, keepdim=True)) / INT4_CODES[0]
    top = torch.where(top == 0, SMALLEST_INT4_SCALE, top)
    scales = [sign * clip * top for sign in (1, -1) for clip in INT4_CLIPS]
    return _best(rows, scales, INT4_CODES, INT4_SCALE_DTYPE, importance)


def _best(
    rows: Tensor,
    scales: list[Tensor],
    codes: tuple[int, int],
    dtype: torch.dtype,
    importance: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Of the candidates (n, 1) the scale with the smallest squared error, row by row, and its codes.

    `importance` (inputs,) weighs the errors.
    """
    best = scales[0].to(dtype)
    least = torch.full_like(best, float("inf"), dtype=torch.float32)
    for candidate in scales:
        scale = candidate.to(dtype)
        squares = (round_to_codes(rows, scale, codes) * scale.float() - rows).square()
        error = (squares if importance is None else squares * importance).sum(dim=1, keepdim=True)
        best, least = torch.where(error < least, scale, best), torch.minimum(error, least)
    return round_to_codes(rows, best, codes).to(torch.int8), best


def round_to_codes(rows: Tensor, scale: Tensor, codes: tuple[int, int]) -> Tensor:
    """The nearest codes, as float32."""
    return (rows / scale.float()).round().clamp(*codes)
