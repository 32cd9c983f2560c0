"""The language model: a decoder-only Transformer (Qwen2, Qwen3 or Llama family) with an explicit KV cache.

Two paths over the same weights. `forward` is transformers' own and is what trains; `extend` is a lean step
for prefill and decoding that takes a KV cache and gives one back (`decoder`; at small sizes Python overhead,
not arithmetic, costs the time). Tests hold the two equal. `optimized` is the form for fast inference on a
CPU.

Legend: B batch, L new positions, S cached and new positions, dim width.
"""

from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from echat.config import Config, ConfigError, nearest, validate
from echat.kernels.attention import EAGER_ATTENTION, register_attention
from echat.model.blocks import MOST_BLOCKS
from echat.model.decoder import Decoder, DecoderLayer, KVCache

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

# Model types of transformers that compute what `decoder` computes, and the rope_theta of files without one.
# They differ in biases of queries, keys and values (qwen2) and in a norm of queries and keys (qwen3): both
# are read off the layers.
ARCHITECTURES = {"qwen2": 1e6, "qwen3": 1e6, "llama": 1e4}
_FIXED = {  # what every model that is read has in common; a `config.json` that differs is refused
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "use_sliding_window": False,
    "rope_type": "default",
}


class LLMConfig(Config):
    """Shape of the language model; the defaults are Qwen2.5-3B, the released size."""

    OMITTED_AT_DEFAULT: ClassVar[frozenset[str]] = frozenset({"head_dim"})

    architecture: str = "qwen2"  # transformers' name of the model type, one of `ARCHITECTURES`
    vocab_size: int = Field(151936, gt=0)  # rows of the text table
    dim: int = Field(2048, gt=0)  # hidden width
    layers: int = Field(36, gt=0, le=MOST_BLOCKS)  # decoder layers
    heads: int = Field(16, gt=0)  # query heads
    kv_heads: int = Field(2, gt=0)  # key/value heads, each shared by heads / kv_heads query heads
    head_dim: int | None = Field(None, gt=0)  # width of a head; None: dim / heads
    mlp: int = Field(11008, gt=0)  # hidden width of the gated feed-forward layer
    rope_theta: float = 1e6  # base of the rotary positions
    norm_eps: float = 1e-6  # of every RMSNorm
    max_positions: int = Field(32768, gt=0)  # longest sequence
    tie_embeddings: bool = True  # the text head is the text table
    table_std: float = 0.02  # of a fresh text table; dim ** -0.5 gives rows of length 1

    @model_validator(mode="after")
    def _consistent(self) -> "LLMConfig":
        if self.architecture not in ARCHITECTURES:
            advice = nearest(self.architecture, ARCHITECTURES)
            raise ValueError(f"architecture: {self.architecture!r} is unknown, {advice}")
        if (self.head_dim is None and self.dim % (2 * self.heads)) or self.heads % self.kv_heads:
            raise ValueError(
                f"llm: expected dim a multiple of 2 * heads and heads one of kv_heads, found {self.dim}, "
                f"{self.heads} and {self.kv_heads}"
            )
        if self.head_width % 2:
            raise ValueError(f"llm: expected an even head_dim, found {self.head_width}")
        return self

    @property
    def head_width(self) -> int:
        """Width of an attention head."""
        return self.head_dim or self.dim // self.heads

    def to_transformers(self) -> "PreTrainedConfig":
        """The same shape as a transformers configuration."""
        from transformers import AutoConfig

        return AutoConfig.for_model(
            self.architecture,
            vocab_size=self.vocab_size,
            hidden_size=self.dim,
            intermediate_size=self.mlp,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            head_dim=self.head_width,
            max_position_embeddings=self.max_positions,
            rms_norm_eps=self.norm_eps,
            rope_parameters={"rope_type": "default", "rope_theta": self.rope_theta},
            tie_word_embeddings=self.tie_embeddings,
        )

    @classmethod
    def from_transformers(cls, raw: dict[str, Any], where: str = "config.json") -> "LLMConfig":
        """From the parsed `config.json` of a Hugging Face folder of one of `ARCHITECTURES`.

        Raises ConfigError, also for a variant of these that computes otherwise.
        """
        architecture = raw.get("model_type", "qwen2")
        if architecture not in ARCHITECTURES:
            known = " or ".join(ARCHITECTURES)
            raise ConfigError(f"{where}: expected model_type {known}, found {architecture!r:.40}")
        rope = raw.get("rope_parameters") or raw.get("rope_scaling")
        rope = rope if isinstance(rope, dict) else {}
        heads = raw.get("num_attention_heads")
        values = {
            "architecture": architecture,
            "vocab_size": raw.get("vocab_size"),
            "dim": raw.get("hidden_size"),
            "layers": raw.get("num_hidden_layers"),
            "heads": heads,
            "kv_heads": raw.get("num_key_value_heads") or heads,
            "head_dim": _explicit_head_dim(raw),
            "mlp": raw.get("intermediate_size"),
            "rope_theta": raw.get("rope_theta", rope.get("rope_theta", ARCHITECTURES[architecture])),
            "norm_eps": raw.get("rms_norm_eps", 1e-6),
            "max_positions": raw.get("max_position_embeddings", 32768),
            "tie_embeddings": raw.get("tie_word_embeddings", False),
        }
        _check_variant(raw | {"rope_type": rope.get("rope_type", rope.get("type"))}, where)
        return validate(cls, values, where)


def _explicit_head_dim(raw: dict[str, Any]) -> Any:
    """`head_dim` where it says more than hidden_size / num_attention_heads; Qwen3 without one has 128."""
    found = raw.get("head_dim") or (128 if raw.get("model_type") == "qwen3" else None)
    dim, heads = raw.get("hidden_size"), raw.get("num_attention_heads")
    is_usual = isinstance(dim, int) and isinstance(heads, int) and heads > 0 and found == dim / heads
    return None if is_usual else found


def import_transformers(architecture: str) -> None:
    """Import what a language model needs: under the meta device, importing it computes what it cannot."""
    from transformers import CONFIG_MAPPING, MODEL_MAPPING

    _ = MODEL_MAPPING[CONFIG_MAPPING[architecture]]


def _check_variant(raw: dict[str, Any], where: str) -> None:
    """Refuse what shares the model type but not the arithmetic."""
    for name, value in _FIXED.items():
        if raw.get(name) not in (None, value):
            raise ConfigError(
                f"{where}: expected {name} {value}, found {raw[name]!r:.40}; this variant is not read"
            )


class LanguageModel(nn.Module):
    """Embeddings in, last (normalised) hidden states out; the text table and head belong to it."""

    def __init__(self, config: LLMConfig) -> None:
        super().__init__()
        from transformers import AutoModel

        self.config = config
        settings = config.to_transformers()
        register_attention()
        settings._attn_implementation = EAGER_ATTENTION
        self.model = AutoModel.from_config(settings)
        self.head_dim = config.head_width
        if not self.model.embed_tokens.weight.is_meta:
            nn.init.normal_(self.model.embed_tokens.weight, std=config.table_std)
        if not config.tie_embeddings:
            self.lm_head = nn.Linear(config.dim, config.vocab_size, bias=False)

    @property
    def text_embedding(self) -> nn.Embedding:
        """The text table E_t."""
        return self.model.embed_tokens

    @property
    def head_weights(self) -> tuple[Tensor, ...]:
        """What `logits` computes with."""
        if self.config.tie_embeddings:
            return (self.model.embed_tokens.weight,)
        return tuple(self.lm_head.parameters())

    def reset_tables(self) -> None:
        """Compute the rotary frequencies again (after construction on the meta device)."""
        self.model.rotary_emb = type(self.model.rotary_emb)(self.model.config)

    def _apply(self, fn: Any, recurse: bool = True) -> "LanguageModel":
        """Moves and casts as any module, but rotary frequencies stay float32: rounding changes all angles."""
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
        """Prefill or decoding: embeds (B, L, dim), mask (B, S) True = keep -> hidden (B, L, dim),
        longer cache.

        S counts the cached and the new positions. Without `positions` they continue from the cache's length.
        """
        return self._decoder().extend(embeds, cache, mask, positions)

    def _decoder(self) -> Decoder:
        """The layers as they are now: moved, cast, or wrapped by an adapter since the last call."""
        layers: Any = self.model.layers
        return Decoder(
            [_layer(layer) for layer in layers],
            self.model.norm.weight,
            self.config.norm_eps,
            self.config.kv_heads,
            self.model.rotary_emb.inv_freq,
        )


def _layer(layer: Any) -> DecoderLayer:
    """A decoder layer of transformers as functions over its own weights."""
    attention, mlp = layer.self_attn, layer.mlp
    return DecoderLayer(
        attention_norm=layer.input_layernorm.weight,
        qkv=lambda x: torch.cat([attention.q_proj(x), attention.k_proj(x), attention.v_proj(x)], dim=-1),
        head_norms=head_norms(attention),
        out=attention.o_proj,
        mlp_norm=layer.post_attention_layernorm.weight,
        gated=lambda x: F.silu(mlp.gate_proj(x)) * mlp.up_proj(x),
        down=mlp.down_proj,
    )


def head_norms(attention: Any) -> tuple[Tensor, Tensor] | None:
    """Weights of the RMSNorms of queries and keys (Qwen3), (head_dim,) each; None where there are none."""
    query, key = getattr(attention, "q_norm", None), getattr(attention, "k_norm", None)
    return None if query is None or key is None else (query.weight, key.weight)
