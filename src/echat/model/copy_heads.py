"""Two attention heads set by hand, so that a language model learns to copy what it heard from the start.

What is heard and what is written down repeat each other, with blanks (silence) between the words heard. A
small model needs thousands of steps to find the circuit that copies (Olsson et al. 2022, "In-context learning
and induction heads"); here it begins with one (after Trockman and Kolter 2023, "Mimetic initialization"):

* layer 0, head 0 looks at the nearest earlier id that is not the blank and notes it in a subspace;
* layer 1, head 0 looks for the place whose note is the id just written, and proposes the id that stands
  there.

Everything stays free to learn. Only for models that start from nothing.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from echat.model.llm import LanguageModel

BACK = 1.3  # nats by which each position further away counts less
REACH = 24  # positions over which that holds
SHARPNESS = (1.0, 1.5)  # added weights of the fastest rotary pairs, which tell neighbours apart
BLANK_PENALTY = 22.0  # nats
SELF_PENALTY = 14.0  # nats by which a place counts less that holds the same id, above all the place itself
MATCH = 30.0  # nats by which a place that follows the same id stands out
NOTE = 2.0  # size of the note against the embedding
PROPOSAL = 4.0  # size of the proposal against the embedding
GIST = 1.0  # size of the mean of what was heard against the embedding
GIST_WORDS = 30  # ids that this mean is usually of
COMMON = 4  # directions of the table in which ids hardly differ
SLOW = 0.002  # radians per position below which a rotary pair does not mind the distance


@torch.no_grad()
def set_copy_heads(llm: LanguageModel, blank: int, generator: torch.Generator | None = None) -> None:
    """Write both heads into the first two layers. `blank` is the id that stands between words."""
    layers: Any = llm.model.layers
    if len(layers) < 2:
        raise ValueError(f"copy heads: expected at least 2 layers, found {len(layers)}")
    dim, head_dim = llm.config.dim, llm.head_dim
    rates = llm.model.rotary_emb.inv_freq.float()
    slow = (rates < SLOW).nonzero().flatten()[:-1]  # the slowest pair is kept for the blank
    if len(slow) < 4:
        raise ValueError(f"copy heads: expected head_dim above 16, found {head_dim}")
    content = torch.cat([slow, slow + head_dim // 2])
    table = llm.text_embedding.weight
    size = float(table.norm(dim=1).mean())
    basis = _telling(table, generator)
    silence = basis.T @ (basis @ table[blank])  # what tells the blank from other ids
    silence = silence / silence.norm()
    note, place, proposal = basis[: len(content)], basis[len(content) : 2 * len(content)], basis[-head_dim:]

    first = layers[0].self_attn
    _clear(first, head_dim)
    weights = _recency(rates)
    q, k = first.q_proj, first.k_proj
    half = head_dim // 2
    scale = math.sqrt(head_dim)
    q.bias[:half] = (weights * scale).sqrt()
    k.bias[:half] = (weights * scale).sqrt() * rates.cos()
    k.bias[half:head_dim] = (weights * scale).sqrt() * rates.sin()
    _avoid(first, silence, head_dim, dim)
    gain = math.sqrt(SELF_PENALTY * scale / len(content))
    q.weight[content], k.weight[content] = -gain * note, gain * note
    first.v_proj.weight[: len(content)] = note
    first.o_proj.weight[:, : len(content)] = place.T * (NOTE * size / math.sqrt(len(content)))

    _set_gist(first, basis, head_dim, size, silence)

    second = layers[1].self_attn
    _clear(second, head_dim)
    gain = math.sqrt(MATCH * scale / len(content))
    second.q_proj.weight[content] = note * gain
    second.k_proj.weight[content] = place * gain
    _avoid(second, silence, head_dim, dim)
    second.v_proj.weight[:head_dim] = proposal
    second.o_proj.weight[:, :head_dim] = proposal.T * (PROPOSAL * size / math.sqrt(head_dim))


def _set_gist(attention: Any, basis: Tensor, head_dim: int, size: float, silence: Tensor) -> None:
    """The last query head looks at every earlier id but the blank alike, and adds the mean of what it sees."""
    last = slice(attention.k_proj.weight.shape[0] - head_dim, None)
    head = slice(attention.q_proj.weight.shape[0] - head_dim, None)
    for linear, rows in ((attention.q_proj, head), (attention.k_proj, last), (attention.v_proj, last)):
        linear.weight[rows] = 0.0
        linear.bias[rows] = 0.0
    read, write = basis[64 : 64 + head_dim], basis[64 + head_dim : 64 + 2 * head_dim]
    attention.v_proj.weight[last] = read
    scale = GIST * size * math.sqrt(GIST_WORDS) / math.sqrt(head_dim)
    attention.o_proj.weight[:, head] = write.T * scale


def _telling(table: Tensor, generator: torch.Generator | None) -> Tensor:
    """Orthonormal rows (dim - COMMON, dim) in random directions, but for those that most ids share."""
    directions = torch.linalg.svd(table.float(), full_matrices=False)[2][COMMON:]
    turn = torch.linalg.qr(torch.randn(len(directions), len(directions), generator=generator))[0]
    return turn @ directions


def _clear(attention: Any, head_dim: int) -> None:
    """Query head 0 and its key and value head hold nothing yet."""
    for linear in (attention.q_proj, attention.k_proj, attention.v_proj):
        linear.weight[:head_dim] = 0.0
        linear.bias[:head_dim] = 0.0
    attention.o_proj.weight[:, :head_dim] = 0.0


def _avoid(attention: Any, silence: Tensor, head_dim: int, dim: int) -> None:
    """Keys that hold the blank lose `BLANK_PENALTY` nats; the slowest rotary pair carries it."""
    slowest = head_dim // 2 - 1
    strength = math.sqrt(BLANK_PENALTY * math.sqrt(head_dim) / math.sqrt(dim))
    attention.q_proj.bias[slowest] = strength
    attention.k_proj.weight[slowest] = -strength * silence
    attention.k_proj.bias[[slowest, head_dim - 1]] = 0.0


def _recency(rates: Tensor) -> Tensor:
    """Weights w >= 0 of the rotary pairs such that sum w (1 - cos(rate x)) is about BACK |x| up to REACH."""
    distance = torch.arange(0, REACH + 1, dtype=torch.float32)
    waves = 1.0 - torch.cos(distance[:, None] * rates[None])
    weights = torch.full_like(rates, 1.0)
    for _ in range(2000):  # multiplicative updates keep the weights positive
        wanted = waves.T @ (BACK * distance)
        weights = weights * wanted / (waves.T @ (waves @ weights)).clamp_min(1e-6)
    weights[: len(SHARPNESS)] += torch.tensor(SHARPNESS)
    return torch.where(rates > SLOW, weights, 0.0)
