"""Quantized and packed models for inference on a CPU: `optimize(model, "int8")` is used as the model itself.

| precision | layers | heads | encoder and adapter | tables |
|---|---|---|---|---|
| fp32 | fp32, blocked | fp32 | fp32, blocked | fp32 |
| bf16 | bf16, blocked | bf16 | bf16 or fp32, whichever this CPU multiplies faster | bf16 |
| int8 | int8 | int8 | int8 | bf16 |
| int4 | int4 in groups | int8 | int8 | bf16 |

Sums, norms, attention and the cache are float32, except where bf16 is the faster of the two over many rows:
there the encoder of a bf16 model is bf16 throughout, and int8 and int4 have encoder attention in bf16. Which
it is is measured, once in a process: one core with AVX512-BF16 gave 85 GFLOP/s in bf16 and 141 in packed
fp32, another 490 and 110. Over one row, where memory is the limit, the smaller weights always win.

Queries, keys and values come from one merged layer, gate and up from another: fewer passes over the input,
and no concatenation. The text table stays as it is, to be read a row at a time; the text head has a packed
copy, for all of it is read for every text id.
"""

import copy
import time
from functools import cache, partial
from itertools import chain
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from echat.kernels.packed_linear import (
    INT4_GROUPS,
    FloatLinear,
    PackedLinear,
    Precision,
    at_least_int8,
    pack_linear,
    pack_merged,
)
from echat.model.blocks import PositionTable, SelfAttention, TransformerBlock, attend
from echat.model.decoder import Decoder, DecoderLayer, KVCache
from echat.model.llm import LanguageModel, head_norms
from echat.model.speech_llm import SpeechLLM


class PackedLayer(nn.Module):
    """A decoder layer of transformers with packed weights."""

    def __init__(self, layer: Any, precision: Precision, int4_group: int) -> None:
        super().__init__()
        attention, mlp = layer.self_attn, layer.mlp
        pack = partial(pack_merged, precision=precision, int4_group=int4_group)
        self.qkv = pack([attention.q_proj, attention.k_proj, attention.v_proj])
        self.out = pack([attention.o_proj])
        self.gate_up = pack([mlp.gate_proj, mlp.up_proj])
        self.down = pack([mlp.down_proj])
        norms = head_norms(attention)
        self.head_norms = None if norms is None else (norms[0].detach().float(), norms[1].detach().float())
        self.attention_norm = layer.input_layernorm.weight.detach().float()
        self.mlp_norm = layer.post_attention_layernorm.weight.detach().float()

    def as_decoder_layer(self) -> DecoderLayer:
        """The same as functions."""
        return DecoderLayer(
            self.attention_norm, self.qkv, self.out, self.mlp_norm, self._gated, self.down, self.head_norms
        )

    def _gated(self, normed: Tensor) -> Tensor:
        gate, up = self.gate_up(normed).chunk(2, dim=-1)
        return F.silu(gate) * up


class PackedLanguageModel(nn.Module):
    """`LanguageModel` for inference alone; takes the layers of `llm` away one by one, so that memory holds
    them once."""

    def __init__(self, llm: LanguageModel, precision: Precision, int4_group: int) -> None:
        super().__init__()
        self.config, self.head_dim = llm.config, llm.head_dim
        table_dtype = torch.float32 if precision == "fp32" else torch.bfloat16
        source: Any = llm.model
        self.text_embedding = freeze_embedding(source.embed_tokens, table_dtype)
        self.head = self._pack_head(llm, precision)
        layers, source.layers = list(source.layers), nn.ModuleList()
        self.layers = nn.ModuleList()
        while layers:
            self.layers.append(PackedLayer(layers.pop(0), precision, int4_group))
        stacked: Any = self.layers
        self.decoder = Decoder(
            [layer.as_decoder_layer() for layer in stacked],
            source.norm.weight.detach().float(),
            self.config.norm_eps,
            self.config.kv_heads,
            source.rotary_emb.inv_freq,
        )

    def _pack_head(self, llm: LanguageModel, precision: Precision) -> PackedLinear | None:
        """A head is read in 8 bits even where layers have 4: an error here falls on the choice itself. In
        float32 packing gains nothing for single rows, and the tied table is not copied."""
        if precision == "fp32" and self.config.tie_embeddings:
            return None
        tied: Any = llm.model.embed_tokens if self.config.tie_embeddings else llm.lm_head
        return pack_linear(tied.weight, None, at_least_int8(precision))

    def logits(self, hidden: Tensor) -> Tensor:
        """Text scores H_t: (..., dim) -> (..., vocab_size)."""
        return self.head(hidden) if self.head is not None else F.linear(hidden, self.text_embedding.weight)

    def forward(self, embeds: Tensor, mask: Tensor | None = None, positions: Tensor | None = None) -> Tensor:
        """The contract of `LanguageModel.forward`."""
        batch, length, _ = embeds.shape
        hidden, _ = self.extend(embeds, self.new_cache(batch, length), mask, positions)
        return hidden

    def new_cache(self, batch: int = 1, capacity: int = 512) -> KVCache:
        """An empty cache in float32, in which attention is fastest on a CPU."""
        shape = (self.config.layers, batch, self.config.kv_heads, capacity, self.head_dim)
        return KVCache(torch.zeros(shape), torch.zeros(shape))

    def extend(
        self, embeds: Tensor, cache: KVCache, mask: Tensor | None = None, positions: Tensor | None = None
    ) -> tuple[Tensor, KVCache]:
        """The contract of `LanguageModel.extend`; hidden states are float32 whatever the embeds are."""
        return self.decoder.extend(embeds.float(), cache, mask, positions)

    def weight_bytes(self, text: bool) -> int:
        """Bytes of weights that one step reads; with `text` those of the text head too."""
        linears = [m for m in self.layers.modules() if isinstance(m, PackedLinear)]
        head = self.text_embedding.weight.nbytes if self.head is None else self.head.weight_bytes
        return sum(m.weight_bytes for m in linears) + (head if text else 0)


def freeze_embedding(table: nn.Embedding, dtype: torch.dtype) -> nn.Embedding:
    """The table in `dtype`; shared where it is in `dtype` already."""
    return nn.Embedding.from_pretrained(table.weight.detach().to(dtype), freeze=True)


# --- The whole model: encoder, adapter, language model, heads.

TRIAL_ROWS, TRIAL_WIDTH, TRIALS = 250, 1024, 7  # 5 s of sound through one layer of the released encoder
CLEARLY_FASTER = 1.5  # so that no noise of a machine decides where both are alike


class PackedSelfAttention(nn.Module):
    """`SelfAttention` with queries, keys and values from one packed layer; attention is in bf16 where
    this CPU multiplies that faster, unless float32 was asked for."""

    def __init__(self, attention: SelfAttention, precision: Precision) -> None:
        super().__init__()
        self.heads = attention.heads
        self.attends_in_bf16 = precision != "fp32" and _is_bf16_faster()
        self.qkv = pack_merged([attention.query, attention.key, attention.value], precision)
        self.out = pack_merged([attention.out], precision)

    def forward(self, frames: Tensor, mask: Tensor | None) -> Tensor:
        """The contract of `SelfAttention.forward`."""
        qkv = self.qkv(frames)
        query, key, value = (qkv.bfloat16() if self.attends_in_bf16 else qkv).chunk(3, dim=-1)
        return self.out(attend(query, key, value, self.heads, mask))


def optimize(
    model: SpeechLLM, precision: Precision, *, int4_group: int = 32, consume: bool = False
) -> SpeechLLM:
    """A twin of `model` for inference on this CPU, with the same methods; it is not trained, moved or saved.

    `int4_group`: inputs that share a scale (32, 64, 128 or 256). `consume`: use `model` up, layer by layer,
    so that memory never holds its weights twice; it is of no use afterwards.
    """
    _check(model, int4_group)
    packed = model if consume else _sharing_copy(model)
    tables = torch.float32 if precision == "fp32" else torch.bfloat16
    encoder_precision = _encoder_precision(precision)
    for block in chain(packed.encoder.blocks, packed.adapter.blocks):
        assert isinstance(block, TransformerBlock)
        _pack_block(block, encoder_precision)
    replace: Any = packed.adapter
    replace.input = pack_merged([packed.adapter.input], encoder_precision)
    for part in (packed.encoder, packed.subsampler, packed.adapter, packed.projection):
        _cast(part, torch.bfloat16 if encoder_precision == "bf16" else torch.float32)
    replace = packed
    replace.llm = PackedLanguageModel(packed.llm, precision, int4_group)
    packed.speech_embedding = freeze_embedding(packed.speech_embedding, tables)
    replace.speech_head = pack_merged([packed.speech_head], at_least_int8(precision))
    packed.register_state_dict_pre_hook(_refuse_saving)
    return packed.eval().requires_grad_(False)


def _pack_block(block: TransformerBlock, precision: Precision) -> None:
    parts: Any = block
    parts.attention = PackedSelfAttention(block.attention, precision)
    if block.has_convolution:
        parts.convolution.gate = pack_merged([block.convolution.gate], precision)
        parts.convolution.out = pack_merged([block.convolution.out], precision)
    parts.feed_forward.expand = pack_merged([block.feed_forward.expand], precision)
    parts.feed_forward.contract = pack_merged([block.feed_forward.contract], precision)


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


def _encoder_precision(precision: Precision) -> Precision:
    if precision == "bf16":
        return "bf16" if _is_bf16_faster() else "fp32"
    return at_least_int8(precision)


@cache
def _is_bf16_faster() -> bool:
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
    if int4_group not in INT4_GROUPS:
        raise ValueError(f"int4_group: expected 32, 64, 128 or 256, found {int4_group}")


def _refuse_saving(module: nn.Module, prefix: str, keep_vars: bool) -> None:
    raise ValueError(
        "saving: expected a model with plain weights, found one packed for inference; save the model before "
        "packing, or load it again without a precision"
    )
