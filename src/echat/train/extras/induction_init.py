"""Induction-head initialization: three attention heads set by construction, for small models from scratch.

The transcript repeats the words of the input, which stand between blanks (silence). A small model needs
thousands of steps to learn the circuit that copies (Olsson et al. 2022, "In-context learning and induction
heads"); here it begins with one (after Trockman and Kolter 2023, "Mimetic initialization"):

* layer 0, head 0 (previous-token head) attends to the nearest earlier id that is not the blank and writes it
  into a subspace;
* layer 1, head 0 (induction head) attends to the position whose previous id is the current one, and raises
  the logit of the id at that position;
* layer 0, last head (averaging head), attends to all earlier ids but the blank alike: every position has a
  bag of words of the input.

All weights remain trainable. Only for models with random weights.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from echat.model.llm import LanguageModel

RECENCY = 1.3  # nats of attention lost per position of distance
RECENCY_REACH = 24  # positions over which that holds
SHARPNESS = (1.0, 1.5)  # added weights of the fastest rotary pairs, which separate neighbours
BLANK_PENALTY = 22.0  # nats that the blank loses in the previous-token head
AVERAGE_BLANK_PENALTY = 8.0  # the same in the averaging head
SELF_PENALTY = 14.0  # nats that positions with the same id lose, the position itself above all
MATCH = 30.0  # nats that a position gains which follows the same id
PREVIOUS_SCALE = 2.0  # scale of the previous id against the embedding
INDUCTION_SCALE = 6.0  # scale of the induction head's output against the embedding
AVERAGE_SCALE = 1.0  # scale of the average against the embedding
AVERAGE_WORDS = 30  # usual number of ids in the average
N_COMMON = 4  # directions of the table in which ids hardly differ
SLOW_RATE = 0.002  # radians per position below which a rotary pair hardly depends on distance


@torch.no_grad()
def init_induction_heads(llm: LanguageModel, blank: int, generator: torch.Generator | None = None) -> None:
    """Write the heads into the first two layers. `blank` is the id between words.

    Raises ValueError for models of one layer, of one key-value head, of heads too narrow to hold them, or of
    an architecture whose queries and keys have no bias.
    """
    if llm.config.architecture != "qwen2":
        raise ValueError(
            f"init.induction_heads: expected architecture qwen2, found {llm.config.architecture}"
        )
    layers: Any = llm.model.layers
    rates = llm.model.rotary_emb.inv_freq.float()
    _check(len(layers), llm.config.kv_heads, llm.head_dim, rates)
    table = llm.text_embedding.weight
    norm = float(table.norm(dim=1).mean())
    basis = _distinctive_directions(table, generator)
    blank_direction = basis.T @ (basis @ table[blank])  # what distinguishes the blank from other ids
    blank_direction = blank_direction / blank_direction.norm()
    content = _content(rates)
    current, previous, average = basis.split([len(content), len(content), len(basis) - 2 * len(content)])
    _set_previous_token_head(
        _Head(layers[0].self_attn, llm.head_dim, 0),
        rates,
        blank_direction,
        current,
        previous.T * (PREVIOUS_SCALE * norm),
    )
    _set_averaging_head(
        _Head(layers[0].self_attn, llm.head_dim, -1),
        blank_direction,
        basis,
        average.T * (AVERAGE_SCALE * norm),
    )
    _set_induction_head(
        _Head(layers[1].self_attn, llm.head_dim, 0), content, blank_direction, current, previous, basis, norm
    )


def _check(layers: int, kv_heads: int, head_dim: int, rates: Tensor) -> None:
    for name, least, found in (("layers", 2, layers), ("key-value heads", 2, kv_heads)):
        if found < least:
            raise ValueError(f"init.induction_heads: expected at least {least} {name}, found {found}")
    if len(_content(rates)) < 8:
        raise ValueError(f"init.induction_heads: expected head_dim above 16, found {head_dim}")


class _Head:
    """Views of one query head, its key and value head and its part of the output; all set to zero.

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

    def penalize_blank(self, blank_direction: Tensor, penalty: float = BLANK_PENALTY) -> None:
        """Keys that hold the blank lose ``penalty`` nats; the slowest rotary pair carries it."""
        slowest = len(self.q) // 2 - 1
        strength = math.sqrt(penalty * self.scale / math.sqrt(len(blank_direction)))
        self.q_bias[slowest] = strength
        self.k[slowest] = -strength * blank_direction
        self.k_bias[[slowest, len(self.q) - 1]] = 0.0

    def copy(self, read: Tensor, write: Tensor) -> None:
        """Copy the components along ``read`` (count, dim) to the directions ``write`` (dim, count)."""
        count = min(len(self.v), len(read), write.shape[1])
        self.v[:count] = read[:count]
        self.out[:, :count] = write[:, :count] / math.sqrt(count)


def _set_previous_token_head(
    head: _Head, rates: Tensor, blank_direction: Tensor, current: Tensor, previous: Tensor
) -> None:
    half = len(rates)
    content = _content(rates)
    weights = _recency(rates)
    head.q_bias[:half] = (weights * head.scale).sqrt()
    head.k_bias[:half] = (weights * head.scale).sqrt() * rates.cos()
    head.k_bias[half:] = (weights * head.scale).sqrt() * rates.sin()
    head.penalize_blank(blank_direction)
    gain = math.sqrt(SELF_PENALTY * head.scale / len(content))
    head.q[content], head.k[content] = -gain * current, gain * current
    head.copy(current, previous)


def _set_averaging_head(head: _Head, blank_direction: Tensor, read: Tensor, write: Tensor) -> None:
    head.penalize_blank(blank_direction, AVERAGE_BLANK_PENALTY)
    head.copy(read, write * math.sqrt(AVERAGE_WORDS))


def _set_induction_head(
    head: _Head,
    content: Tensor,
    blank_direction: Tensor,
    current: Tensor,
    previous: Tensor,
    basis: Tensor,
    norm: float,
) -> None:
    gain = math.sqrt(MATCH * head.scale / len(content))
    head.q[content] = current * gain
    head.k[content] = previous * gain
    head.penalize_blank(blank_direction)
    read = basis[-len(head.v) :]
    head.copy(read, read.T * (INDUCTION_SCALE * norm))


def _content(rates: Tensor) -> Tensor:
    """Dimensions of a head whose rotary pairs are slow; the slowest pair is kept for the blank."""
    slow = (rates < SLOW_RATE).nonzero().flatten()[:-1]
    return torch.cat([slow, slow + len(rates)])


def _distinctive_directions(table: Tensor, generator: torch.Generator | None) -> Tensor:
    """Orthonormal rows (dim - N_COMMON, dim) in random directions, but for those that most ids share."""
    directions = torch.linalg.svd(table.float(), full_matrices=False)[2][N_COMMON:]
    turn = torch.linalg.qr(torch.randn(len(directions), len(directions), generator=generator))[0]
    return turn @ directions


def _recency(rates: Tensor) -> Tensor:
    """Weights w >= 0 of the rotary pairs such that sum w (1 - cos(rate x)) is about BACK |x| up to REACH."""
    distance = torch.arange(0, RECENCY_REACH + 1, dtype=torch.float32)
    waves = 1.0 - torch.cos(distance[:, None] * rates[None])
    weights = torch.full_like(rates, 1.0)
    for _ in range(2000):  # multiplicative updates keep the weights positive
        target = waves.T @ (RECENCY * distance)
        weights = weights * target / (waves.T @ (waves @ weights)).clamp_min(1e-6)
    weights[: len(SHARPNESS)] += torch.tensor(SHARPNESS)
    return torch.where(rates > SLOW_RATE, weights, 0.0)
