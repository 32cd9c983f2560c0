"""Noise by frame: the same numbers whichever piece asks for them."""

import torch

from echat.token2wav.noise import BLOCK, frame_noise


def test_a_frame_has_its_own_noise():
    whole = frame_noise(7, "flow", 3, -2 * BLOCK, 3 * BLOCK, per_frame=2)
    for start, stop in ((-5, 4), (0, 1), (BLOCK - 1, 2 * BLOCK + 1), (3, 3)):
        part = frame_noise(7, "flow", 3, start, stop, per_frame=2)
        first = 2 * (start + 2 * BLOCK)
        assert torch.equal(part, whole[:, :, first : first + 2 * (stop - start)])


def test_it_is_noise():
    some = [frame_noise(seed, use, 80, 0, 320).flatten() for seed in (0, 1) for use in ("flow", "source")]
    for values in some:
        assert abs(values.mean()) < 0.03 and abs(values.std() - 1) < 0.03
    assert torch.corrcoef(torch.stack(some)).fill_diagonal_(0).abs().max() < 0.03
    blocks = some[0].view(80, -1, BLOCK).transpose(0, 1).flatten(1)
    assert torch.corrcoef(blocks).fill_diagonal_(0).abs().max() < 0.1
