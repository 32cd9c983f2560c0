"""Prefix CTC loss: the probability that a CTC transcript begins with given ids, whatever follows.

`F.ctc_loss` scores whole texts. The probability of a prefix is the sum, over the frame at which its last
id is emitted for the first time, of all alignments up to there; what follows is free (Graves 2008, 7.5).

Legend: T frames, B clips, V classes, U ids of the longest prefix.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

LOG_ZERO = -1e30  # log probability of the impossible; true infinity would make gradients undefined


def prefix_losses(log_probs: Tensor, units: Tensor, lens: Tensor, unit_lens: Tensor, blank: int) -> Tensor:
    """-log probability (B,) that clips of log_probs (T, B, V) begin with units (B, U).

    lens (B,) valid frames; unit_lens (B,) valid ids, at least one each.
    """
    unit_log_probs = log_probs.gather(2, units.expand(len(log_probs), -1, -1))  # (T, B, U)
    blanks = log_probs[..., blank, None]  # (T, B, 1)
    repeats = F.pad(units[:, 1:] == units[:, :-1], (1, 0))  # needs a blank between
    on_unit = torch.full_like(unit_log_probs[0], LOG_ZERO)  # (B, U) the last frame emits unit k
    on_blank = torch.cat([torch.zeros_like(blanks[0]), on_unit], dim=1)  # (B, 1 + U) blank after k units
    arrivals = []
    for here, blank_here in zip(unit_log_probs, blanks):
        straight = F.pad(on_unit[:, :-1], (1, 0), value=LOG_ZERO).masked_fill(repeats, LOG_ZERO)
        arrival = here + torch.logaddexp(on_blank[:, :-1], straight)
        arrivals.append(arrival)
        on_blank = blank_here + torch.logaddexp(on_blank, F.pad(on_unit, (1, 0), value=LOG_ZERO))
        on_unit = torch.logaddexp(arrival, here + on_unit)
    is_valid = torch.arange(len(unit_log_probs), device=lens.device)[:, None] < lens  # (T, B)
    last = torch.stack(arrivals).gather(2, (unit_lens - 1).expand(len(unit_log_probs), -1)[..., None])[..., 0]
    return -last.masked_fill(~is_valid, LOG_ZERO).logsumexp(dim=0)
