"""The language model: Qwen2 of transformers, wrapped once, with an explicit key/value cache.

Two paths over the same weights. `forward` is transformers' own and is what trains; `extend` is a lean step
for generation that takes a cache and gives one back (at small sizes Python overhead, not arithmetic, costs
the time). Tests hold the two equal.

Legend: B batch, L new positions, S cached and new positions, H query heads, K key/value heads, dim width.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from echat.config import Config

if TYPE_CHECKING:
    from transformers import Qwen2Config


class LLMConfig(Config):
    """Shape of the Qwen2 language model; the defaults are Qwen2.5-3B, the released size."""

    vocab_size: int = 151936  # rows of the text table
    dim: int = 2048  # hidden width
    layers: int = 36  # decoder layers
    heads: int = 16  # query heads
    kv_heads: int = 2  # key/value heads, each shared by heads / kv_heads query heads
    mlp: int = 11008  # hidden width of the gated feed-forward layer
    rope_theta: float = 1e6  # base of the rotary positions
    norm_eps: float = 1e-6  # of every RMSNorm
    max_positions: int = 32768  # longest sequence
    tie_embeddings: bool = True  # the text head is the text table
    table_std: float = 0.02  # of a fresh text table; dim ** -0.5 gives rows of length 1

    def to_transformers(self) -> "Qwen2Config":
        """The same shape as a transformers configuration."""
        from transformers import Qwen2Config

        return Qwen2Config(
            vocab_size=self.vocab_size,
            hidden_size=self.dim,
            intermediate_size=self.mlp,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            max_position_embeddings=self.max_positions,
            rms_norm_eps=self.norm_eps,
            rope_parameters={"rope_type": "default", "rope_theta": self.rope_theta},
            tie_word_embeddings=self.tie_embeddings,
            use_sliding_window=False,
        )

    @classmethod
    def from_transformers(cls, raw: dict[str, Any]) -> "LLMConfig":
        """From the parsed `config.json` of a Hugging Face Qwen2 folder."""
        if raw.get("model_type", "qwen2") != "qwen2":
            raise ValueError(f"language model: expected model_type qwen2, found {raw['model_type']}")
        rope = raw.get("rope_parameters") or {}
        return cls(
            vocab_size=raw["vocab_size"],
            dim=raw["hidden_size"],
            layers=raw["num_hidden_layers"],
            heads=raw["num_attention_heads"],
            kv_heads=raw.get("num_key_value_heads", raw["num_attention_heads"]),
            mlp=raw["intermediate_size"],
            rope_theta=float(raw.get("rope_theta", rope.get("rope_theta", 1e6))),
            norm_eps=raw.get("rms_norm_eps", 1e-6),
            max_positions=raw.get("max_position_embeddings", 32768),
            tie_embeddings=raw.get("tie_word_embeddings", False),
        )


@dataclass(frozen=True)
class KVCache:
    """Keys and values of the positions read so far, a value that goes in and comes out of `extend`.

    The storage is shared between a cache and the one that `extend` returns; use `fork` to continue one cache
    twice.
    """

    keys: Tensor  # (layers, B, K, capacity, head_dim)
    values: Tensor  # (layers, B, K, capacity, head_dim)
    length: int = 0  # positions in use

    def fork(self) -> "KVCache":
        """An independent copy."""
        return replace(self, keys=self.keys.clone(), values=self.values.clone())

    def expand(self, batch: int) -> "KVCache":
        """One row repeated `batch` times, independent copies."""
        return replace(
            self, keys=self.keys.repeat(1, batch, 1, 1, 1), values=self.values.repeat(1, batch, 1, 1, 1)
        )

    def reserve(self, positions: int) -> "KVCache":
        """Room for `positions` in all; doubles the storage so that growing is rare."""
        capacity = self.keys.shape[3]
        if positions <= capacity:
            return self
        room = max(positions, 2 * capacity) - capacity
        return replace(
            self, keys=F.pad(self.keys, (0, 0, 0, room)), values=F.pad(self.values, (0, 0, 0, room))
        )


class LanguageModel(nn.Module):
    """Embeddings in, last (normalised) hidden states out; the text table and head belong to it."""

    def __init__(self, config: LLMConfig) -> None:
        super().__init__()
        from transformers import Qwen2Model

        self.config = config
        settings = config.to_transformers()
        settings._attn_implementation = "sdpa"
        self.model = Qwen2Model(settings)
        self.head_dim = config.dim // config.heads
        if not self.model.embed_tokens.weight.is_meta:
            nn.init.normal_(self.model.embed_tokens.weight, std=config.table_std)
        if not config.tie_embeddings:
            self.lm_head = nn.Linear(config.dim, config.vocab_size, bias=False)

    @property
    def text_embedding(self) -> nn.Embedding:
        """The text table E_t."""
        return self.model.embed_tokens

    def reset_tables(self) -> None:
        """Compute the rotary frequencies again (after construction on the meta device)."""
        self.model.rotary_emb = type(self.model.rotary_emb)(self.model.config)

    def _apply(self, fn: Any, recurse: bool = True) -> "LanguageModel":
        """Moves and casts as any module, but rotary frequencies stay in float32: rounding them bends every
        angle."""
        super()._apply(fn, recurse)
        device = self.model.embed_tokens.weight.device
        if device.type != "meta" and self.model.rotary_emb.inv_freq.dtype != torch.float32:
            self.reset_tables()
            self.model.rotary_emb.to(device)
        return self

    def logits(self, hidden: Tensor) -> Tensor:
        """Text scores H_t: (..., dim) -> (..., vocab_size)."""
        if self.config.tie_embeddings:
            return F.linear(hidden, self.model.embed_tokens.weight)
        return self.lm_head(hidden)

    def forward(self, embeds: Tensor, mask: Tensor | None = None, positions: Tensor | None = None) -> Tensor:
        """embeds (B, L, dim), mask (B, L) True = keep, positions (B, L) -> hidden (B, L, dim).

        Attention is causal, so padding on the right needs no mask; leave it out and the fast path is taken.
        """
        output = self.model(
            inputs_embeds=embeds, attention_mask=mask, position_ids=positions, use_cache=False
        )
        return output.last_hidden_state

    def new_cache(self, batch: int = 1, capacity: int = 512) -> KVCache:
        """An empty cache on the device and in the precision of the weights."""
        table = self.model.embed_tokens.weight
        shape = (self.config.layers, batch, self.config.kv_heads, capacity, self.head_dim)
        return KVCache(table.new_zeros(shape), table.new_zeros(shape))

    def extend(
        self, embeds: Tensor, cache: KVCache, mask: Tensor | None = None, positions: Tensor | None = None
    ) -> tuple[Tensor, KVCache]:
        """Read L more positions: embeds (B, L, dim), mask (B, S) True = keep -> hidden (B, L, dim), longer
        cache.

        S counts the cached and the new positions. Without `positions` they continue from the cache's length.
        """
        length = embeds.shape[1]
        total = cache.length + length
        cache = cache.reserve(total)
        if positions is None:
            positions = torch.arange(cache.length, total, device=embeds.device)[None]
        attention = _attention_mask(mask, cache.length, length, embeds.device)
        cos, sin = self._rotary(positions, embeds.dtype)
        hidden = embeds
        layers: Any = self.model.layers
        for index, layer in enumerate(layers):
            normed = _rms_norm(hidden, layer.input_layernorm)
            hidden = hidden + self._attend(index, layer.self_attn, normed, cos, sin, cache, attention)
            normed = _rms_norm(hidden, layer.post_attention_layernorm)
            mlp = layer.mlp
            hidden = hidden + mlp.down_proj(F.silu(mlp.gate_proj(normed)) * mlp.up_proj(normed))
        return _rms_norm(hidden, self.model.norm), replace(cache, length=total)

    def _rotary(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """cos and sin of the rotary angles, (B, 1, L, head_dim) each."""
        angles = positions[:, None, :, None].float() * self.model.rotary_emb.inv_freq
        angles = torch.cat([angles, angles], dim=-1)
        return angles.cos().to(dtype), angles.sin().to(dtype)

    def _attend(
        self,
        index: int,
        attention: Any,
        hidden: Tensor,
        cos: Tensor,
        sin: Tensor,
        cache: KVCache,
        mask: Tensor | None,
    ) -> Tensor:
        """Attention of one layer over cached and new positions; writes the new keys and values into the
        cache."""
        batch, length, _ = hidden.shape
        start, total = cache.length, cache.length + length
        split = (batch, length, -1, self.head_dim)
        query = _rotate(attention.q_proj(hidden).view(split).transpose(1, 2), cos, sin)  # (B, H, L, head_dim)
        key = _rotate(attention.k_proj(hidden).view(split).transpose(1, 2), cos, sin)  # (B, K, L, head_dim)
        value = attention.v_proj(hidden).view(split).transpose(1, 2)
        cache.keys[index, :, :, start:total] = key
        cache.values[index, :, :, start:total] = value
        keys = cache.keys[index, :, :, :total]
        values = cache.values[index, :, :, :total]
        groups = self.config.heads // self.config.kv_heads
        if (
            length == 1
        ):  # the query heads of a group become rows that share one key/value head: nothing is copied
            query = query.view(batch, self.config.kv_heads, groups, self.head_dim)
            mixed = F.scaled_dot_product_attention(query, keys, values, attn_mask=mask)
            return attention.o_proj(mixed.reshape(batch, 1, -1))
        keys = keys.repeat_interleave(groups, dim=1)
        values = values.repeat_interleave(groups, dim=1)
        causal = mask is None
        mixed = F.scaled_dot_product_attention(query, keys, values, attn_mask=mask, is_causal=causal)
        return attention.o_proj(mixed.transpose(1, 2).reshape(batch, length, -1))


def _attention_mask(mask: Tensor | None, past: int, length: int, device: torch.device) -> Tensor | None:
    """(B, 1, L, S) True = attend; None where plain causal attention (or a single new position) says the
    same."""
    if mask is None and (length == 1 or past == 0):
        return None
    if length == 1:
        return mask[:, None, None, :]  # type: ignore[index]
    causal = torch.ones(length, past + length, dtype=torch.bool, device=device).tril(past)
    if mask is None:
        return causal[None, None]
    # A padded query still needs one key, or its softmax is undefined: it attends to itself.
    itself = torch.eye(length, past + length, dtype=torch.bool, device=device).roll(past, dims=1)
    return (causal & mask[:, None, :] | itself)[:, None]


def _rms_norm(hidden: Tensor, norm: Any) -> Tensor:
    return F.rms_norm(hidden, (hidden.shape[-1],), norm.weight, norm.variance_epsilon)


def _rotate(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions, rotate-half form."""
    first, second = heads.chunk(2, dim=-1)
    return heads * cos + torch.cat([-second, first], dim=-1) * sin
