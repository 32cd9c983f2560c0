"""A model for fast inference on a CPU: `pack(model, "int8")` is used exactly as the model itself.

| precision | layers | heads | encoder and adapter | tables |
|---|---|---|---|---|
| fp32 | fp32, blocked | fp32 | fp32, blocked | fp32 |
| bf16 | bf16, blocked | bf16 | bf16 where the CPU has AMX, else fp32 | bf16 |
| int8 | int8 | int8 | int8 | bf16 |
| int4 | int4 in groups | int8 | int8 | bf16 |

Sums, norms, attention and the cache are float32 in all of them. fp32 for hearing beside bf16 is measured:
over many rows the dot products of AVX512-BF16 gave 85 GFLOP/s a core, packed fp32 141, int8 500; over one
row, where memory is the limit, the smaller weights win.
"""

import copy
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from echat.model.blocks import PositionTable, SelfAttention, TransformerBlock, attend
from echat.model.packed_linear import Precision
from echat.model.packed_llm import PackedLanguageModel, frozen_embedding, fuse, head_precision
from echat.model.speech_llm import SpeechLLM


class PackedSelfAttention(nn.Module):
    """`SelfAttention` with queries, keys and values out of one packed map."""

    def __init__(self, attention: SelfAttention, precision: Precision) -> None:
        super().__init__()
        self.heads = attention.heads
        self.qkv = fuse([attention.query, attention.key, attention.value], precision)
        self.out = fuse([attention.out], precision)

    def forward(self, frames: Tensor, mask: Tensor | None) -> Tensor:
        """The contract of `SelfAttention.forward`."""
        query, key, value = self.qkv(frames).chunk(3, dim=-1)
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
        _to_float(part)
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


def _to_float(part: nn.Module) -> None:
    """What is left unpacked (norms, convolutions, positions) in float32. New parameters are made, for the old
    ones may belong to another model too."""
    for module in part.modules():
        if isinstance(module, PositionTable):
            module.reset()
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter.dtype != torch.float32:
                setattr(module, name, nn.Parameter(parameter.detach().float(), requires_grad=False))


def _sharing_copy(model: SpeechLLM) -> SpeechLLM:
    """The same tree of modules over the same tensors."""
    return copy.deepcopy(model, {id(tensor): tensor for tensor in chain(model.parameters(), model.buffers())})


def _hearing_precision(precision: Precision) -> Precision:
    if precision == "bf16":
        has_amx = getattr(torch.cpu, "_is_amx_tile_supported", bool)
        return "bf16" if has_amx() else "fp32"
    return head_precision(precision)


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
