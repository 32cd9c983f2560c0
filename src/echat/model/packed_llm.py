"""The language model for fast inference on a CPU: fused and packed linear maps, float32 in between.

Queries, keys and values come out of one map, gate and up out of another: fewer passes over the input, and no
concatenation. The text table stays as it is, to be read a row at a time; the text head has a packed copy, for
all of it is read for every text id.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from echat.model.decoder import Decoder, KVCache, Layer
from echat.model.llm import LanguageModel
from echat.model.packed_linear import PackedLinear, Precision, pack_linear


class PackedLayer(nn.Module):
    """One decoder layer of transformers, packed."""

    def __init__(self, layer: Any, precision: Precision, int4_group: int) -> None:
        super().__init__()
        attention, mlp = layer.self_attn, layer.mlp
        self.qkv = fuse([attention.q_proj, attention.k_proj, attention.v_proj], precision, int4_group)
        self.out = fuse([attention.o_proj], precision, int4_group)
        self.gate_up = fuse([mlp.gate_proj, mlp.up_proj], precision, int4_group)
        self.down = fuse([mlp.down_proj], precision, int4_group)
        self.attention_norm = layer.input_layernorm.weight.detach().float()
        self.mlp_norm = layer.post_attention_layernorm.weight.detach().float()

    def as_layer(self) -> Layer:
        """The same as functions."""
        return Layer(self.attention_norm, self.qkv, self.out, self.mlp_norm, self._gated, self.down)

    def _gated(self, normed: Tensor) -> Tensor:
        gate, up = self.gate_up(normed).chunk(2, dim=-1)
        return F.silu(gate) * up


class PackedLanguageModel(nn.Module):
    """What `LanguageModel` does, without learning; takes the layers of `llm` away one by one, so that memory
    holds them once."""

    def __init__(self, llm: LanguageModel, precision: Precision, int4_group: int) -> None:
        super().__init__()
        self.config, self.head_dim = llm.config, llm.head_dim
        table_dtype = torch.float32 if precision == "fp32" else torch.bfloat16
        source: Any = llm.model
        self.text_embedding = frozen_embedding(source.embed_tokens, table_dtype)
        self.head = self._pack_head(llm, precision)
        layers, source.layers = list(source.layers), nn.ModuleList()
        self.layers = nn.ModuleList()
        while layers:
            self.layers.append(PackedLayer(layers.pop(0), precision, int4_group))
        stacked: Any = self.layers
        self.decoder = Decoder(
            [layer.as_layer() for layer in stacked],
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
        return pack_linear(tied.weight, None, head_precision(precision))

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


def fuse(linears: list[nn.Linear], precision: Precision, int4_group: int = 32) -> PackedLinear:
    """Maps of one input as one, outputs side by side; a missing bias counts as zero."""
    for linear in linears:
        if type(linear) is not nn.Linear:
            raise ValueError(
                f"packing for inference: expected plain linear maps, found {type(linear).__name__}; merge "
                "adapters into the weights first"
            )
    weight = torch.cat([linear.weight.detach() for linear in linears])
    if all(linear.bias is None for linear in linears):
        return pack_linear(weight, None, precision, int4_group)
    biases = [
        linear.weight.new_zeros(linear.out_features) if linear.bias is None else linear.bias.detach()
        for linear in linears
    ]
    return pack_linear(weight, torch.cat(biases), precision, int4_group)


def head_precision(precision: Precision) -> Precision:
    """Of maps that are not decoder layers."""
    return "int8" if precision == "int4" else precision


def frozen_embedding(table: nn.Embedding, dtype: torch.dtype) -> nn.Embedding:
    """The table in `dtype`; shared where it is in `dtype` already."""
    return nn.Embedding.from_pretrained(table.weight.detach().to(dtype), freeze=True)
