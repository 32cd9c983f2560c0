"""The decoder layers of the language model at inference (prefill and decoding), and its KV cache.

The layers are given as functions, so that the same few lines run over separate weights (`llm`) and over
weights merged and packed for a CPU (`optimized`).

Legend: B batch, L new positions, S cached and new positions, H query heads, K key/value heads, dim width.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

Map = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class KVCache:
    """KV cache: keys and values of the positions read so far, a value that goes in and comes out of `extend`.

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

    def pick(self, rows: Tensor) -> "KVCache":
        """These rows (n,), any of them any number of times; independent copies."""
        return replace(self, keys=self.keys[:, rows], values=self.values[:, rows])

    def reserve(self, positions: int) -> "KVCache":
        """Room for `positions` in all; doubles the storage so that reallocation is rare."""
        capacity = self.keys.shape[3]
        if positions <= capacity:
            return self
        room = max(positions, 2 * capacity) - capacity
        return replace(
            self, keys=F.pad(self.keys, (0, 0, 0, room)), values=F.pad(self.values, (0, 0, 0, room))
        )


@dataclass(frozen=True)
class DecoderLayer:
    """One decoder layer: what is computed between the norms, the attention and the residual sums."""

    attention_norm: Tensor  # (dim,)
    qkv: Map  # (..., dim) -> (..., (H + 2 K) * head_dim): queries, keys, values
    out: Map  # (..., H * head_dim) -> (..., dim)
    mlp_norm: Tensor  # (dim,)
    gated: Map  # (..., dim) -> (..., mlp): silu(gate) * up
    down: Map  # (..., mlp) -> (..., dim)
    head_norms: tuple[Tensor, Tensor] | None = None  # of queries and keys, (head_dim,) each (Qwen3)


@dataclass(frozen=True)
class Decoder:
    """The layers of the language model and what they have in common."""

    layers: Sequence[DecoderLayer]
    norm: Tensor  # (dim,), after the last layer
    norm_eps: float
    kv_heads: int
    inv_freq: Tensor  # (head_dim / 2,), rotary frequencies in float32

    def extend(
        self, embeds: Tensor, cache: KVCache, mask: Tensor | None = None, positions: Tensor | None = None
    ) -> tuple[Tensor, KVCache]:
        """The contract of `LanguageModel.extend`."""
        length = embeds.shape[1]
        total = cache.length + length
        cache = cache.reserve(total)
        if positions is None:
            positions = torch.arange(cache.length, total, device=embeds.device)[None]
        attend = _attention_mask(mask, cache.length, length, embeds.device)
        rotary = self._rotary(positions, embeds.dtype)
        hidden, start = embeds, cache.length
        for layer, keys, values in zip(self.layers, cache.keys.unbind(), cache.values.unbind(), strict=True):
            normed = self._normalise(hidden, layer.attention_norm)
            hidden = hidden + layer.out(self._attend(layer, normed, rotary, keys, values, start, attend))
            normed = self._normalise(hidden, layer.mlp_norm)
            hidden = hidden + layer.down(layer.gated(normed))
        return self._normalise(hidden, self.norm), replace(cache, length=total)

    def _normalise(self, hidden: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(hidden, (hidden.shape[-1],), weight, self.norm_eps)

    def _rotary(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """cos and sin of the rotary angles, (B, 1, L, head_dim) each; sin has the sign of rotate-half in it.

        A table would spare ten microseconds of a step, which is nothing beside the linear maps.
        """
        angles = positions[:, None, :, None].float() * self.inv_freq
        cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
        return torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)

    def _attend(
        self,
        layer: DecoderLayer,
        normed: Tensor,
        rotary: tuple[Tensor, Tensor],
        keys: Tensor,
        values: Tensor,
        start: int,
        mask: Tensor | None,
    ) -> Tensor:
        """Attention of one layer over cached and new positions -> (B, L, H * head_dim); writes the new keys
        and values into the cache, keys and values (B, K, capacity, head_dim), from position `start` on."""
        batch, length, _ = normed.shape
        head_dim, kv_heads, total = keys.shape[3], self.kv_heads, start + length
        heads = layer.qkv(normed).view(batch, length, -1, head_dim).transpose(1, 2)
        turned, value = heads.tensor_split((heads.shape[1] - kv_heads,), dim=1)  # (B, H + K, L, head_dim)
        if layer.head_norms is not None:
            query, key = turned.tensor_split((turned.shape[1] - kv_heads,), dim=1)
            pairs = zip((query, key), layer.head_norms, strict=True)
            turned = torch.cat([self._normalise(part, weight) for part, weight in pairs], dim=1)
        turned = _rotate(turned, *rotary)
        query, key = turned.tensor_split((turned.shape[1] - kv_heads,), dim=1)
        keys.narrow(2, start, length).copy_(key)
        values.narrow(2, start, length).copy_(value)
        keys, values = keys.narrow(2, 0, total), values.narrow(2, 0, total)
        if length == 1:  # the query heads of a group are rows that share a key/value head: nothing is copied
            query = query.reshape(batch, kv_heads, -1, head_dim)
            mixed = F.scaled_dot_product_attention(query, keys, values, attn_mask=mask)
            return mixed.reshape(batch, 1, -1)
        mixed = F.scaled_dot_product_attention(
            query, keys, values, attn_mask=mask, is_causal=mask is None, enable_gqa=True
        )
        return mixed.transpose(1, 2).reshape(batch, length, -1)


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


def _rotate(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions, rotate-half form: the halves are exchanged, the sign is in `sin`."""
    return torch.addcmul(heads * cos, heads.roll(heads.shape[-1] // 2, dims=-1), sin)
