"""The language model: Qwen2 or Llama of transformers, wrapped once, with an explicit key/value cache.

Two paths over the same weights. `forward` is transformers' own and is what trains; `extend` is a lean step
for generation that takes a cache and gives one back (`decoder`; at small sizes Python overhead, not
arithmetic, costs the time). Tests hold the two equal. `packed_llm` is the form for fast inference on a CPU.

Legend: B batch, L new positions, S cached and new positions, dim width.
"""

from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from echat.config import Config, ConfigError, validate
from echat.kernels.attention import EAGER_ATTENTION, register_attention
from echat.model.blocks import MOST_BLOCKS
from echat.model.decoder import Decoder, DecoderLayer, KVCache

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

Architecture = Literal["qwen2", "llama"]  # they differ in the biases of queries, keys and values
_FIXED = {  # what every model that is read has in common; a `config.json` that differs is refused
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "use_sliding_window": False,
    "rope_type": "default",
}
_DEFAULT_THETA = {"qwen2": 1e6, "llama": 1e4}  # of files that leave it out


class LLMConfig(Config):
    """Shape of the language model; the defaults are Qwen2.5-3B, the released size."""

    architecture: Architecture = "qwen2"  # transformers' name of the model type
    vocab_size: int = Field(151936, gt=0)  # rows of the text table
    dim: int = Field(2048, gt=0)  # hidden width
    layers: int = Field(36, gt=0, le=MOST_BLOCKS)  # decoder layers
    heads: int = Field(16, gt=0)  # query heads
    kv_heads: int = Field(2, gt=0)  # key/value heads, each shared by heads / kv_heads query heads
    mlp: int = Field(11008, gt=0)  # hidden width of the gated feed-forward layer
    rope_theta: float = 1e6  # base of the rotary positions
    norm_eps: float = 1e-6  # of every RMSNorm
    max_positions: int = Field(32768, gt=0)  # longest sequence
    tie_embeddings: bool = True  # the text head is the text table
    table_std: float = 0.02  # of a fresh text table; dim ** -0.5 gives rows of length 1

    @model_validator(mode="after")
    def _heads_divide(self) -> "LLMConfig":
        if self.dim % (2 * self.heads) or self.heads % self.kv_heads:
            raise ValueError(
                f"llm: expected dim a multiple of 2 * heads and heads one of kv_heads, found {self.dim}, "
                f"{self.heads} and {self.kv_heads}"
            )
        return self

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
            max_position_embeddings=self.max_positions,
            rms_norm_eps=self.norm_eps,
            rope_parameters={"rope_type": "default", "rope_theta": self.rope_theta},
            tie_word_embeddings=self.tie_embeddings,
        )

    @classmethod
    def from_transformers(cls, raw: dict[str, Any], where: str = "config.json") -> "LLMConfig":
        """From the parsed `config.json` of a Hugging Face folder of Qwen2 or Llama.

        Raises ConfigError, also for a variant of these that computes otherwise.
        """
        architecture = raw.get("model_type", "qwen2")
        if architecture not in get_args(Architecture):
            known = " or ".join(get_args(Architecture))
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
            "mlp": raw.get("intermediate_size"),
            "rope_theta": raw.get("rope_theta", rope.get("rope_theta", _DEFAULT_THETA[architecture])),
            "norm_eps": raw.get("rms_norm_eps", 1e-6),
            "max_positions": raw.get("max_position_embeddings", 32768),
            "tie_embeddings": raw.get("tie_word_embeddings", False),
        }
        config = validate(cls, values, where)
        _check_variant(raw | {"rope_type": rope.get("rope_type", rope.get("type"))}, config, where)
        return config


def import_transformers() -> None:
    """Import what a language model needs: under the meta device, importing it computes what it cannot."""
    from transformers import AutoModel, LlamaModel, Qwen2Model  # noqa: F401


def _check_variant(raw: dict[str, Any], config: LLMConfig, where: str) -> None:
    """Refuse what shares the model type but not the arithmetic."""
    for name, value in (_FIXED | {"head_dim": config.dim // config.heads}).items():
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
        self.head_dim = config.dim // config.heads
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
    """A decoder layer of transformers, weights as they lie."""
    attention, mlp = layer.self_attn, layer.mlp
    return DecoderLayer(
        attention_norm=layer.input_layernorm.weight,
        qkv=lambda x: torch.cat([attention.q_proj(x), attention.k_proj(x), attention.v_proj(x)], dim=-1),
        out=attention.o_proj,
        mlp_norm=layer.post_attention_layernorm.weight,
        gated=lambda x: F.silu(mlp.gate_proj(x)) * mlp.up_proj(x),
        down=mlp.down_proj,
    )
