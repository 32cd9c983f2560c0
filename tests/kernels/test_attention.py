"""Attention written out in bf16 is the attention of torch."""

import pytest
import torch
import torch.nn.functional as F

from echat.kernels.attention import (
    MAX_KEYS,
    QUERY_BLOCK,
    causal_eager_attention,
    eager_attention,
    prefers_eager,
    transformers_attention,
)
from echat.model.blocks import SelfAttention


def heads(batch: int, count: int, length: int, width: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(count * length)
    return torch.randn(batch, count, length, width, generator=generator)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_written_out_is_sdpa(groups: int) -> None:
    """With a mask and shared key/value heads, up to rounding, of bf16 or of float32."""
    query, key, value = heads(2, 4, 7, 16), heads(2, groups, 7, 16), heads(2, groups, 7, 16)
    keep = torch.ones(7, 7, dtype=torch.bool).tril()
    expected = F.scaled_dot_product_attention(query, key, value, attn_mask=keep, enable_gqa=True)
    assert torch.allclose(eager_attention(query, key, value, keep, 16**-0.5), expected, atol=1e-6)
    low = eager_attention(query, key, value.bfloat16(), keep, 16**-0.5)
    assert low.dtype == torch.bfloat16
    assert torch.allclose(low.float(), expected, atol=0.03)


@pytest.mark.parametrize("length", [1, QUERY_BLOCK, QUERY_BLOCK + 1, 2 * QUERY_BLOCK + 3])
def test_causal_attention_in_runs_of_queries_is_sdpa(length: int) -> None:
    """Values and gradients, whatever is left for the last run."""
    parts = [heads(2, count, length, 8).requires_grad_() for count in (4, 2, 2)]
    ways = (
        causal_eager_attention(*parts, 8**-0.5),
        F.scaled_dot_product_attention(*parts, is_causal=True, enable_gqa=True),
    )
    assert torch.allclose(*ways, atol=1e-5)
    weights = heads(2, 4, length, 8)
    found, expected = (torch.autograd.grad((way * weights).sum(), parts) for way in ways)
    assert all(torch.allclose(one, two, atol=1e-4) for one, two in zip(found, expected))


def test_it_pays_for_short_bf16_on_a_cpu_only() -> None:
    value = heads(1, 1, MAX_KEYS, 4)
    assert prefers_eager(value.bfloat16()) and not prefers_eager(value)
    longer = heads(1, 1, MAX_KEYS + 1, 4).bfloat16()
    assert not prefers_eager(longer) and prefers_eager(longer, MAX_KEYS + 1)


def test_language_attention_is_causal_when_it_learns() -> None:
    """The gradient of an early output does not reach later positions; values agree with those of SDPA."""
    module = torch.nn.Module()
    module.num_key_value_groups = 2  # type: ignore[assignment]
    query, key = heads(1, 4, 6, 8), heads(1, 2, 6, 8)
    value = heads(1, 2, 6, 8).bfloat16().requires_grad_()
    mixed, _ = transformers_attention(
        module, query, key, value, None, scaling=8**-0.5, is_causal=True
    )  # (B, L, H, d)
    mixed[:, 2].sum().backward()
    assert value.grad is not None and float(value.grad[:, :, 3:].abs().max()) == 0.0
    with torch.no_grad():
        plain, _ = transformers_attention(
            module, query, key, value.float(), None, scaling=8**-0.5, is_causal=True
        )
    assert torch.allclose(mixed.float(), plain, atol=0.03)


def test_padding_is_hidden_in_bf16_too() -> None:
    """A padded row of self-attention gives what the row gives alone."""
    torch.manual_seed(0)
    attention = SelfAttention(16, 2, key_bias=True)
    frames = torch.randn(1, 9, 16)
    keep = (torch.arange(9) < 5)[None, None, None]
    with torch.autocast("cpu", torch.bfloat16):
        padded, alone = attention(frames, keep)[:, :5], attention(frames[:, :5], None)
    assert padded.requires_grad
    assert torch.allclose(padded.float(), alone.float(), atol=0.02)
