"""Conformer, length regulator, estimator and flow against the arrays of the released code."""

import pytest
import torch
import torch.nn.functional as F

from echat.token2wav.token_encoder import relative_positions


@pytest.mark.parametrize("case", ["nosplit", "split", "noprompt"])
def test_regulated_ids(flow, golden, close, case):
    g = golden("flow_encoder")
    ids, n = g[f"{case}.token"], int(g[f"{case}.n_prompt"])
    close(flow.encoder(flow.input_embedding(ids)), g[f"{case}.encoder_out"], 2e-5)
    regulated = flow.regulate(ids[:, n:], ids[:, :n], int(g[f"{case}.mel_len1"]))
    close(regulated.transpose(1, 2), g[f"{case}.regulated"], 5e-5)
    assert ids.shape[1] - n == int(g[f"{case}.n_token"])
    assert flow.config.mel_frames(ids.shape[1] - n) == int(g[f"{case}.mel_len2"])


def test_inside_the_encoder(flow, golden, close):
    g = golden("flow_encoder")
    x = flow.encoder.embed(flow.input_embedding(g["nosplit.token"]))
    close(x, g["nosplit.embed_out"], 2e-5)
    positions = relative_positions(x.shape[1], x.shape[2])
    close(positions[None], g["nosplit.pos_emb"], 1e-5)
    for index, block in enumerate(flow.encoder.encoders):
        x = block(x, positions, None)
        close(x, g[f"nosplit.layer{index}_out"], 2e-5)
    close(flow.encode(g["nosplit.token"]), g["nosplit.proj_out"], 2e-5)


def test_padded_rows(flow, golden, close):
    g = golden("flow_encoder")
    ids, lens = g["batch.token"], g["batch.lens"]
    mask = torch.arange(ids.shape[1]) < lens[:, None]
    out = flow.encoder(flow.input_embedding(ids.clamp(min=0)) * mask[..., None], mask)
    close(out[mask], g["batch.encoder_out"][mask], 2e-5)


def test_speaker_projection(flow, golden, close):
    g = golden("flow_encoder")
    close(flow.speaker(g["spk.embedding"]), g["spk.projected"], 1e-5)


@pytest.mark.parametrize("case", ["even", "odd", "masked"])
def test_estimator(flow, golden, close, case):
    g = golden("estimator")
    inputs = {name: g[f"{case}.{name}"] for name in ("x", "mask", "mu", "t", "spks", "cond")}
    close(flow.decoder.estimator(**inputs), g[f"{case}.out"], 5e-5)
    close(flow.decoder.estimator.time_mlp(inputs["t"]), g[f"{case}.time_emb"], 1e-5)


@pytest.mark.parametrize("case", ["prompt_split", "noprompt"])
def test_whole_flow(flow, golden, close, monkeypatch, case):
    g = golden("flow_inference")
    close(flow.decoder._warp(torch.linspace(0, 1, 11)), g["t_span"], 1e-6)
    seen, points = [], []
    forward = flow.decoder.estimator.forward

    def spy(x, mask, mu, t, spks, cond):
        seen.append(t[0])
        points.append(x[0])
        return forward(x, mask, mu, t, spks, cond)

    monkeypatch.setattr(flow.decoder.estimator, "forward", spy)
    names = ("token", "prompt_token", "prompt_feat", "embedding", "z")
    close(flow(*(g[f"{case}.{name}"] for name in names)), g[f"{case}.mel"], 1e-4)
    close(torch.stack(seen), g[f"{case}.t_seen"], 1e-6)
    close(points[1], g[f"{case}.x_step1"], 5e-5)
    generator = torch.Generator().manual_seed(int(g[f"{case}.z_seed"]))
    assert torch.equal(torch.randn(g[f"{case}.z"].shape, generator=generator), g[f"{case}.z"])


def test_without_a_mask_is_the_same_as_with_ones(flow, golden, close):
    g = golden("estimator")
    names = ("x", "mask", "mu", "t", "spks", "cond")
    inputs = {name: g[f"odd.{name}"] for name in names}
    ones = flow.decoder.estimator(**(inputs | {"mask": torch.ones_like(inputs["mask"])}))
    none = flow.decoder.estimator(**(inputs | {"mask": None}))
    close(none, ones, 1e-5)
    assert F.l1_loss(none, inputs["x"]) > 0.1
