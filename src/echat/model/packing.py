"""A model for fast inference on a CPU: `pack(model, "int8")` is used exactly as the model itself.

| precision | layers | heads | encoder and adapter | tables |
|---|---|---|---|---|
| fp32 | fp32, blocked | fp32 | fp32, blocked | fp32 |
| bf16 | bf16, blocked | bf16 | bf16 or fp32, whichever this CPU multiplies faster | bf16 |
| int8 | int8 | int8 | int8 | bf16 |
| int4 | int4 in groups | int8 | int8 | bf16 |

Sums, norms, attention and the cache are float32, except where bf16 is the faster of the two over many rows:
there bf16 hears in bf16 throughout, and int8 and int4 hear with attention in bf16. Which it is is measured,
once in a process: one core with AVX512-BF16 gave 85 GFLOP/s in bf16 and 141 in packed fp32, another 490 and
110. Over one row, where memory is the limit, the smaller weights always win.
"""

import copy
import time
from functools import cache
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from echat.model.blocks import PositionTable, SelfAttention, TransformerBlock, attend
from echat.model.packed_linear import FloatLinear, Precision
from echat.model.packed_llm import PackedLanguageModel, frozen_embedding, fuse, head_precision
from echat.model.speech_llm import SpeechLLM

TRIAL_ROWS, TRIAL_WIDTH, TRIALS = 250, 1024, 7  # 5 s of sound through one map of the released encoder
CLEARLY_FASTER = 1.5  # so that no noise of a machine decides where both are alike


class PackedSelfAttention(nn.Module):
    """`SelfAttention` with queries, keys and values out of one packed map; they meet in bf16 where this CPU
    multiplies that faster, unless float32 was asked for."""

    def __init__(self, attention: SelfAttention, precision: Precision) -> None:
        super().__init__()
        self.heads = attention.heads
        self.meets_in_bf16 = precision != "fp32" and _bf16_outruns_fp32()
        self.qkv = fuse([attention.query, attention.key, attention.value], precision)
        self.out = fuse([attention.out], precision)

    def forward(self, frames: Tensor, mask: Tensor | None) -> Tensor:
        """The contract of `SelfAttention.forward`."""
        qkv = self.qkv(frames)
        query, key, value = (qkv.bfloat16() if self.meets_in_bf16 else qkv).chunk(3, dim=-1)
        return self.out(attend(query, key, value, self.heads, mask))


def pack(model: SpeechLLM, precision: Precision, *, int4_group: int = 32, consume: bool = False) -> SpeechLLM:
    """A twin of `model` for inference on this CPU, with the same methods; it is not trained, moved or saved.

    `int4_group`: inputs that share a scale (32, 64, 128 or 256). `consume`: use `model` up, layer by layer,
    so that memory never holds its weights twice; it is of no use afterwards.
    """
    _check(model, int4_group)
    packed = model if consume else _sharing_copy(model)
    tables = torch.float32 if precision == "fp32" else torch.bfloat16
    hearing = _hearing_precision(precision)
    for block in chain(packed.encoder.blocks, packed.adapter.blocks):
        assert isinstance(block, TransformerBlock)
        _pack_block(block, hearing)
    replace: Any = packed.adapter
    replace.input = fuse([packed.adapter.input], hearing)
    for part in (packed.encoder, packed.subsampler, packed.adapter, packed.projection):
        _cast(part, torch.bfloat16 if hearing == "bf16" else torch.float32)
    replace = packed
    replace.llm = PackedLanguageModel(packed.llm, precision, int4_group)
    packed.speech_embedding = frozen_embedding(packed.speech_embedding, tables)
    replace.speech_head = fuse([packed.speech_head], head_precision(precision))
    packed.register_state_dict_pre_hook(_refuse_saving)
    return packed.eval().requires_grad_(False)


def _pack_block(block: TransformerBlock, precision: Precision) -> None:
    parts: Any = block
    parts.attention = PackedSelfAttention(block.attention, precision)
    if block.has_convolution:
        parts.convolution.gate = fuse([block.convolution.gate], precision)
        parts.convolution.out = fuse([block.convolution.out], precision)
    parts.feed_forward.expand = fuse([block.feed_forward.expand], precision)
    parts.feed_forward.contract = fuse([block.feed_forward.contract], precision)


def _cast(part: nn.Module, dtype: torch.dtype) -> None:
    """What is left unpacked (norms, convolutions, positions) in `dtype`. New parameters are made, for the old
    ones may belong to another model too."""
    for module in part.modules():
        if isinstance(module, PositionTable):
            module.table = module.computed().to(dtype)
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter.dtype != dtype:
                setattr(module, name, nn.Parameter(parameter.detach().to(dtype), requires_grad=False))


def _sharing_copy(model: SpeechLLM) -> SpeechLLM:
    """The same tree of modules over the same tensors."""
    return copy.deepcopy(model, {id(tensor): tensor for tensor in chain(model.parameters(), model.buffers())})


def _hearing_precision(precision: Precision) -> Precision:
    if precision == "bf16":
        return "bf16" if _bf16_outruns_fp32() else "fp32"
    return head_precision(precision)


@cache
def _bf16_outruns_fp32() -> bool:
    """Whether products over many rows are clearly faster in bf16; seen once, in tens of milliseconds."""
    rows = torch.zeros(TRIAL_ROWS, TRIAL_WIDTH)
    weight = torch.zeros(TRIAL_WIDTH, TRIAL_WIDTH)
    seconds = {
        dtype: _seconds(FloatLinear(weight, None, dtype), rows) for dtype in (torch.float32, torch.bfloat16)
    }
    return seconds[torch.bfloat16] * CLEARLY_FASTER < seconds[torch.float32]


def _seconds(linear: nn.Module, rows: Tensor) -> float:
    """The quickest of a few calls: what else the machine does can only slow them."""
    quickest = float("inf")
    with torch.inference_mode():
        for _ in range(TRIALS):
            begin = time.perf_counter()
            linear(rows)
            quickest = min(quickest, time.perf_counter() - begin)
    return quickest


def _check(model: SpeechLLM, int4_group: int) -> None:
    if isinstance(model.llm, PackedLanguageModel):
        raise ValueError("packing: expected a model with plain weights, found a packed one; load it again")
    device = model.projection.weight.device
    if device.type != "cpu":
        raise ValueError(
            f"packing: expected a model on the CPU, found {device}; a GPU runs bf16 weights as is"
        )
    if int4_group not in (32, 64, 128, 256):
        raise ValueError(f"int4_group: expected 32, 64, 128 or 256, found {int4_group}")


def _refuse_saving(module: nn.Module, prefix: str, keep_vars: bool) -> None:
    raise ValueError(
        "saving: expected a model with plain weights, found one packed for inference; save the model before "
        "packing, or load it again without a precision"
    )
