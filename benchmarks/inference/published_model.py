"""The way of the published code, over the same weights: what `inference/throughput.py` measures against.

Language model: transformers' Qwen2 with a static cache of 8000 positions. Key/value heads are expanded to the
query heads and attention reads every column of the cache, masked or not. The prompt gets logits at all
positions, in float32. Encoder and adapter: attention weights are written out, softmax in float32, GELU in
elementary steps.
"""

import copy
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, Qwen2ForCausalLM, StaticCache

from echat.model.blocks import SelfAttention, TransformerBlock
from echat.model.speech_llm import SpeechLLM

CACHE_POSITIONS = 8000
ATTENTION = "expanded"


class Published:
    """Encode, read a prompt, write ids one by one; batch 1."""

    def __init__(self, model: SpeechLLM) -> None:
        self.model = model
        AttentionInterface.register(ATTENTION, expanded_attention)
        settings = model.config.llm.to_transformers()
        settings._attn_implementation = ATTENTION
        with torch.device("meta"):
            self.llm = Qwen2ForCausalLM(settings)
        source = model.llm.model
        self.llm.model.load_state_dict(dict(source.named_parameters()), assign=True)
        self.llm.model.rotary_emb = source.rotary_emb
        tied = model.config.llm.tie_embeddings
        self.llm.lm_head.weight = source.embed_tokens.weight if tied else model.llm.lm_head.weight
        self.llm.eval().requires_grad_(False)
        self.cache = StaticCache(config=settings, max_cache_len=CACHE_POSITIONS)
        self.length = 0

    def encode(self, mel: Tensor) -> Tensor:
        """mel (1, T, n_mels) -> frames (1, D, dim)."""
        return encode(self.model, mel)

    def prefill(self, embeds: Tensor) -> Tensor:
        """embeds (1, L, dim) -> last hidden state (1, dim); logits at all positions are made and dropped."""
        self.cache.reset()
        self.length = 0
        hidden = self._read(embeds)
        self.llm.lm_head(hidden).float()
        return hidden[:, -1]

    def step(self, embeds: Tensor) -> Tensor:
        """embeds (1, 1, dim) -> hidden state (1, dim)."""
        return self._read(embeds)[:, -1]

    def logits(self, hidden: Tensor, speech: bool) -> Tensor:
        """Scores (1, classes) of one head, float32."""
        return (self.model.speech_head if speech else self.llm.lm_head)(hidden).float()

    def embed(self, ids: Tensor, speech: bool) -> Tensor:
        """ids (1,) -> (1, 1, dim)."""
        table = self.model.speech_embedding if speech else self.model.llm.text_embedding
        return table(ids)[:, None]

    def _read(self, embeds: Tensor) -> Tensor:
        length = embeds.shape[1]
        positions = torch.arange(self.length, self.length + length)
        mask = torch.arange(CACHE_POSITIONS)[None] > positions[:, None]
        mask = torch.zeros(mask.shape, dtype=embeds.dtype).masked_fill(mask, torch.finfo(embeds.dtype).min)
        self.length += length
        output = self.llm.model(
            inputs_embeds=embeds,
            attention_mask=mask[None, None],
            position_ids=positions[None],
            past_key_values=self.cache,
            use_cache=True,
        )
        return output.last_hidden_state


def encode(model: SpeechLLM, mel: Tensor) -> Tensor:
    """mel (1, T, n_mels) -> frames (1, D, dim), in the precision of the weights."""
    lens = torch.tensor([mel.shape[1]])
    frames, lens = model.encoder.embed(mel.to(model.projection.weight.dtype), lens)
    for block in model.encoder.blocks:
        frames = eager_block(block, frames, gelu_in_steps)
    frames, lens = model.subsampler(model.encoder.final_norm(frames), lens)
    frames = model.adapter.embed(frames)
    for block in model.adapter.blocks:
        frames = eager_block(block, frames, F.relu)
    return model.projection(model.adapter.final_norm(frames))


def encoder_in_float32(model: SpeechLLM) -> SpeechLLM:
    """The speech encoder and adapter alone. Published inference is bf16 throughout, but on a
    CPU without AMX float32 is faster, so that both are shown."""
    shell = copy.copy(model)
    parts = ("encoder", "subsampler", "adapter", "projection")
    shell._modules = {name: copy.deepcopy(getattr(model, name)).float() for name in parts}
    return shell


def expanded_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float, **_: object
) -> tuple[Tensor, None]:
    """Attention over all columns of the cache, key/value heads copied for each query head of their group."""
    groups = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
    mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scaling)
    return mixed.transpose(1, 2).contiguous(), None


def eager_block(block: TransformerBlock, frames: Tensor, activation: object) -> Tensor:
    """A pre-norm block, attention weights in memory."""
    assert callable(activation)
    frames = frames + eager_attention(block.attention, block.attention_norm(frames))
    hidden = block.feed_forward.expand(block.feed_forward_norm(frames))
    return frames + block.feed_forward.contract(activation(hidden))


def eager_attention(attention: SelfAttention, frames: Tensor) -> Tensor:
    """(1, T, dim) -> (1, T, dim); softmax in float32, as published."""
    batch, length, dim = frames.shape
    shape = (batch, length, attention.heads, dim // attention.heads)
    query, key, value = (
        linear(frames).view(shape).transpose(1, 2)
        for linear in (attention.query, attention.key, attention.value)
    )
    scores = query @ key.transpose(2, 3) / math.sqrt(shape[3])
    weights = scores.float().softmax(dim=-1).to(value.dtype)
    return attention.out((weights @ value).transpose(1, 2).reshape(batch, length, dim))


def gelu_in_steps(x: Tensor) -> Tensor:
    """Exact GELU, elementary operation by elementary operation."""
    return x * 0.5 * (1.0 + torch.erf(x / math.sqrt(2.0)))
