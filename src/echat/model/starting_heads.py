"""Three attention heads set by hand, so that small models copy and grasp the gist from the start.

What is heard and what is written down repeat each other, with blanks (silence) between the words heard. A
small model needs thousands of steps to find the circuit that copies (Olsson et al. 2022, "In-context learning
and induction heads"); here it begins with one (after Trockman and Kolter 2023, "Mimetic initialization"):

* layer 0, head 0 looks at the nearest earlier id that is not the blank and notes it in a subspace;
* layer 1, head 0 looks for the place whose note is the id just written, and proposes the id that stands
  there;
* layer 0, last head, looks at all earlier ids but the blank alike: every position knows which words there
  were, and so what the talk is about.

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
BLANK_PENALTY = 22.0  # nats by which the blank counts less, where near ids count more
GIST_PENALTY = 8.0  # the same where all count alike
SELF_PENALTY = 14.0  # nats by which a place counts less that holds the same id, above all the place itself
MATCH = 30.0  # nats by which a place that follows the same id stands out
NOTE = 2.0  # size of the note against the embedding
PROPOSAL = 6.0  # size of the proposal against the embedding
GIST = 1.0  # size of the mean of what was heard against the embedding
GIST_WORDS = 30  # ids that this mean is usually of
COMMON = 4  # directions of the table in which ids hardly differ
SLOW = 0.002  # radians per position below which a rotary pair does not mind the distance


@torch.no_grad()
def set_starting_heads(llm: LanguageModel, blank: int, generator: torch.Generator | None = None) -> None:
    """Write the heads into the first two layers. `blank` is the id that stands between words.

    Raises ValueError for models of one layer, of one key-value head, of heads too narrow to hold them, or of
    an architecture whose queries and keys have no bias.
    """
    if llm.config.architecture != "qwen2":
        raise ValueError(f"starting heads: expected architecture qwen2, found {llm.config.architecture}")
    layers: Any = llm.model.layers
    rates = llm.model.rotary_emb.inv_freq.float()
    _check(len(layers), llm.config.kv_heads, llm.head_dim, rates)
    table = llm.text_embedding.weight
    size = float(table.norm(dim=1).mean())
    basis = _telling(table, generator)
    silence = basis.T @ (basis @ table[blank])  # what tells the blank from other ids
    silence = silence / silence.norm()
    content = _content(rates)
    note, place, gist = basis.split([len(content), len(content), len(basis) - 2 * len(content)])
    _set_noting(_Head(layers[0].self_attn, llm.head_dim, 0), rates, silence, note, place.T * (NOTE * size))
    _set_gist(_Head(layers[0].self_attn, llm.head_dim, -1), silence, basis, gist.T * (GIST * size))
    _set_proposing(_Head(layers[1].self_attn, llm.head_dim, 0), content, silence, note, place, basis, size)


def _check(layers: int, kv_heads: int, head_dim: int, rates: Tensor) -> None:
    for name, least, found in (("layers", 2, layers), ("key-value heads", 2, kv_heads)):
        if found < least:
            raise ValueError(f"starting heads: expected at least {least} {name}, found {found}")
    if len(_content(rates)) < 8:
        raise ValueError(f"starting heads: expected head_dim above 16, found {head_dim}")


class _Head:
    """Views of one query head, its key and value head and its part of the output; all set to nothing.

    Other query heads that share the key and value head begin without output: its values would be noise.
    """

    def __init__(self, attention: Any, head_dim: int, which: int) -> None:
        rows = slice(0, head_dim) if which == 0 else slice(-head_dim, None)
        linears = (attention.q_proj, attention.k_proj, attention.v_proj)
        self.q, self.k, self.v = (linear.weight[rows] for linear in linears)
        self.q_bias, self.k_bias, self.v_bias = (linear.bias[rows] for linear in linears)
        self.out = attention.o_proj.weight[:, rows]
        group = len(attention.q_proj.weight) // len(attention.k_proj.weight) * head_dim
        attention.o_proj.weight[:, slice(0, group) if which == 0 else slice(-group, None)] = 0.0
        self.scale = math.sqrt(head_dim)  # what attention divides its scores by
        for part in (self.q, self.k, self.v, self.q_bias, self.k_bias, self.v_bias):
            part.zero_()

    def avoid(self, silence: Tensor, penalty: float = BLANK_PENALTY) -> None:
        """Keys that hold the blank lose ``penalty`` nats; the slowest rotary pair carries it."""
        slowest = len(self.q) // 2 - 1
        strength = math.sqrt(penalty * self.scale / math.sqrt(len(silence)))
        self.q_bias[slowest] = strength
        self.k[slowest] = -strength * silence
        self.k_bias[[slowest, len(self.q) - 1]] = 0.0

    def move(self, read: Tensor, write: Tensor) -> None:
        """Add what stands in the directions ``read`` (count, dim) along ``write`` (dim, count)."""
        count = min(len(self.v), len(read), write.shape[1])
        self.v[:count] = read[:count]
        self.out[:, :count] = write[:, :count] / math.sqrt(count)


def _set_noting(head: _Head, rates: Tensor, silence: Tensor, note: Tensor, place: Tensor) -> None:
    half = len(rates)
    content = _content(rates)
    weights = _recency(rates)
    head.q_bias[:half] = (weights * head.scale).sqrt()
    head.k_bias[:half] = (weights * head.scale).sqrt() * rates.cos()
    head.k_bias[half:] = (weights * head.scale).sqrt() * rates.sin()
    head.avoid(silence)
    gain = math.sqrt(SELF_PENALTY * head.scale / len(content))
    head.q[content], head.k[content] = -gain * note, gain * note
    head.move(note, place)


def _set_gist(head: _Head, silence: Tensor, read: Tensor, write: Tensor) -> None:
    head.avoid(silence, GIST_PENALTY)
    head.move(read, write * math.sqrt(GIST_WORDS))


def _set_proposing(
    head: _Head, content: Tensor, silence: Tensor, note: Tensor, place: Tensor, basis: Tensor, size: float
) -> None:
    gain = math.sqrt(MATCH * head.scale / len(content))
    head.q[content] = note * gain
    head.k[content] = place * gain
    head.avoid(silence)
    proposal = basis[-len(head.v) :]
    head.move(proposal, proposal.T * (PROPOSAL * size))


def _content(rates: Tensor) -> Tensor:
    """Places in a head that hardly turn with distance; the slowest pair is kept for the blank."""
    slow = (rates < SLOW).nonzero().flatten()[:-1]
    return torch.cat([slow, slow + len(rates)])


def _telling(table: Tensor, generator: torch.Generator | None) -> Tensor:
    """Orthonormal rows (dim - COMMON, dim) in random directions, but for those that most ids share."""
    directions = torch.linalg.svd(table.float(), full_matrices=False)[2][COMMON:]
    turn = torch.linalg.qr(torch.randn(len(directions), len(directions), generator=generator))[0]
    return turn @ directions


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
