"""The flow learns, and padding has no say in what it learns when the norms are masked."""

import pytest
import torch

from echat.token2wav.estimator import EstimatorConfig
from echat.token2wav.flow import Flow, FlowConfig
from echat.token2wav.token_encoder import TokenEncoderConfig, stretch, stretch_rows

SMALL = FlowConfig(
    input_size=16,
    vocab_size=12,
    prior_weight=1.0,
    mel_mean=-5.0,
    mel_scale=2.0,
    encoder=TokenEncoderConfig(
        input_size=16, output_size=16, attention_heads=2, linear_units=32, num_blocks=1
    ),
    estimator=EstimatorConfig(
        channels=(16, 16), attention_head_dim=8, num_heads=2, n_blocks=1, num_mid_blocks=1, masked_norm=True
    ),
)  # fmt: skip


def test_stretching_padded_rows_is_stretching_each():
    x, lens, frame_lens = torch.randn(2, 9, 3), torch.tensor([9, 4]), torch.tensor([31, 13])
    out = stretch_rows(x, lens, frame_lens)
    assert torch.allclose(out[0], stretch(x[:1], 31)[0])
    assert torch.allclose(out[1, :13], stretch(x[1:, :4], 13)[0])
    assert (out[1, 13:] == 0).all()
    same = stretch_rows(x, torch.tensor([9, 9]), torch.tensor([31, 31]))
    assert torch.allclose(same, stretch(x, 31))


def test_a_padded_row_is_the_row_alone():
    torch.manual_seed(0)
    flow = Flow(SMALL).eval()
    x, mu, cond = torch.randn(3, 2, 80, 14)
    t, spks = torch.rand(2), torch.randn(2, 80)
    mask = (torch.arange(14) < torch.tensor([14, 9])[:, None])[:, None].float()
    both = flow.decoder.estimator(x * mask, mask, mu * mask, t, spks, cond * mask)
    alone = flow.decoder.estimator(x[1:, :, :9], None, mu[1:, :, :9], t[1:], spks[1:], cond[1:, :, :9])
    assert torch.allclose(both[1:, :, :9], alone, atol=1e-5)
    assert (both[1, :, 9:] == 0).all()
    regulated = flow.length_regulator(mu * mask, mask)
    assert torch.allclose(regulated[1:, :, :9], flow.length_regulator(mu[1:, :, :9]), atol=1e-5)


@pytest.mark.slow
def test_ids_learn_their_sound():
    torch.manual_seed(0)
    flow = Flow(SMALL)
    table = torch.randn(12, 80) * 2 - 5
    ids = torch.randint(12, (6, 6))
    frames = SMALL.mel_frames(6)
    mel = stretch(table[ids], frames)
    lens, mel_lens = torch.full((6,), 6), torch.full((6,), frames)
    embedding = torch.ones(6, 192)
    optimizer = torch.optim.Adam(flow.parameters(), 8e-3)
    losses = []
    for _ in range(60):
        rows, parts = flow.loss(ids, lens, mel, mel_lens, embedding)
        optimizer.zero_grad()
        rows.mean().backward()
        optimizer.step()
        losses.append(parts["prior"].mean().item())
    assert rows.shape == (6,)
    assert sum(losses[-10:]) < 0.6 * sum(losses[:10])
    made = flow.eval()(ids[:1], ids[:1, :0], mel[:1, :0], embedding[:1], generator=torch.Generator())
    assert (made[0].T - mel[0]).abs().mean() < (made[0].T - mel[1]).abs().mean()


def test_one_step_learns_what_it_says():
    """The loss of a one-step flow is the distance of what it speaks from the mel, nothing else."""
    torch.manual_seed(0)
    once = {"one_step": True, "steps": 1, "temperature": 0, "inference_cfg_rate": 0, "training_cfg_rate": 0}
    flow = Flow(FlowConfig(**{**dict(SMALL), **once, "boundary_tokens": 0})).eval()
    ids, embedding = torch.randint(12, (1, 50)), torch.randn(1, 192)  # so long that seams would count
    mel = torch.randn(1, flow.config.mel_frames(50), 80)
    lens, mel_lens = torch.tensor([50]), torch.tensor([mel.shape[1]])
    with torch.inference_mode():
        for seed in range(20):
            generator = torch.Generator().manual_seed(seed)
            if not Flow._prompt_mask(mel_lens, mel.shape[1], torch.Generator().manual_seed(seed)).any():
                break  # it is to see nothing of the mel, as when it speaks
        _, parts = flow.loss(ids, lens, mel, mel_lens, embedding, generator)
        said = flow(ids, ids[:, :0], mel[:, :0], embedding)
    away = (said - mel.mT).abs().mean() / flow.config.mel_scale
    assert torch.allclose(parts["flow"], away, atol=1e-5)


def test_one_step_is_one_step():
    with pytest.raises(ValueError, match=r"expected steps 1, temperature 0 .* found 10, 1 and 0\.7"):
        FlowConfig(one_step=True)


def test_frames_without_seams_lie_evenly():
    flow = Flow(FlowConfig(**{**dict(SMALL), "boundary_tokens": 0})).eval()
    ids = torch.randint(12, (1, 60))
    even = flow.length_regulator(stretch(flow.encode(ids), flow.config.mel_frames(60)).mT)
    assert torch.equal(flow.regulate(ids, ids[:, :0], 0), even)
    seams = Flow(SMALL).eval()
    seams.load_state_dict(flow.state_dict())
    assert not torch.allclose(seams.regulate(ids, ids[:, :0], 0), even, atol=1e-3)
