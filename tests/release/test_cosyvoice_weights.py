"""Released weights load as they are, in every layout, and nothing may be missing or left over."""

import json
from pathlib import Path

import pytest
import torch

from echat.checkpoint import load_strict
from echat.release.cosyvoice_weights import (
    flow_config,
    fold_vocoder,
    read_cosyvoice_yaml,
    read_weights,
)
from echat.token2wav.flow import Flow, FlowConfig
from echat.token2wav.hift.vocoder import VocoderConfig

GOLDEN = Path(__file__).parent.parent / "assets" / "token2wav"


def test_all_vocoder_layouts_are_one():
    new, old = (fold_vocoder(read_weights(GOLDEN / n)) for n in ("tiny_hift.pt", "tiny_hift_oldkeys.pt"))
    prefixed = {f"generator.{name}": tensor for name, tensor in new.items()}
    again = fold_vocoder(prefixed | {"discriminator.conv.weight": torch.zeros(1)})
    assert new.keys() == old.keys() == again.keys()
    for name, tensor in new.items():
        assert torch.equal(tensor, old[name]) and torch.equal(tensor, again[name])


def test_a_missing_half_is_named():
    tensors = read_weights(GOLDEN / "tiny_hift_oldkeys.pt")
    del tensors["conv_pre.weight_v"]
    with pytest.raises(ValueError, match="conv_pre.weight_v beside it"):
        fold_vocoder(tensors)


def test_a_missing_tensor_is_named():
    flow = Flow(flow_config(json.loads((GOLDEN / "config.json").read_text())["flow"]))
    tensors = read_weights(GOLDEN / "tiny_flow.pt")
    del tensors["encoder_proj.bias"]
    with pytest.raises(ValueError, match="encoder_proj.bias"):
        load_strict(flow, tensors, "flow.pt")


def test_not_weights(tmp_path):
    (tmp_path / "flow.pt").write_text("no weights")
    with pytest.raises(ValueError, match="expected a torch file"):
        read_weights(tmp_path / "flow.pt")
    with pytest.raises(ValueError, match="found no file"):
        read_weights(tmp_path / "hift.pt")


RELEASED_YAML = """
__set_seed1: !apply:random.seed [1986]
sample_rate: 22050
spk_embed_dim: 192
flow: !new:cosyvoice.flow.flow.MaskedDiffWithXvec
    input_size: 512
    output_size: 80
    spk_embed_dim: !ref <spk_embed_dim>
    vocab_size: 4096
    input_frame_rate: 25
    encoder: !new:cosyvoice.transformer.encoder.ConformerEncoder
        output_size: 512
        attention_heads: 8
        linear_units: 2048
        num_blocks: 6
        dropout_rate: 0.1
        input_size: 512
    length_regulator: !new:cosyvoice.flow.length_regulator.InterpolateRegulator
        channels: 80
        sampling_ratios: [1, 1, 1, 1]
    decoder: !new:cosyvoice.flow.flow_matching.ConditionalCFM
        in_channels: 240
        cfm_params: !new:omegaconf.DictConfig
            content:
                sigma_min: 1e-06
                t_scheduler: 'cosine'
                training_cfg_rate: 0.2
                inference_cfg_rate: 0.6
        estimator: !new:cosyvoice.flow.decoder.ConditionalDecoder
            in_channels: 320
            out_channels: 80
            channels: [256, 256]
            attention_head_dim: 64
            n_blocks: 4
            num_mid_blocks: 12
            num_heads: 8
            act_fn: 'gelu'
hift: !new:cosyvoice.hifigan.generator.HiFTGenerator
    in_channels: 80
    base_channels: 512
    sampling_rate: !ref <sample_rate>
    upsample_rates: [8, 8]
    upsample_kernel_sizes: [16, 16]
    istft_params:
        n_fft: 16
        hop_len: 4
    f0_predictor: !new:cosyvoice.hifigan.f0_predictor.ConvRNNF0Predictor
        num_class: 1
        in_channels: 80
        cond_channels: 512
"""


@pytest.mark.parametrize(
    "text",
    ["flow: 1", "a: !ref <a>\nflow: {}\nhift: {}", "- 1", "flow: [", RELEASED_YAML.replace("hift:", "h:")],
)
def test_another_yaml_is_one_line(text):
    with pytest.raises(ValueError, match="cosyvoice.yaml: expected the sizes of flow and hift"):
        read_cosyvoice_yaml(text)


def test_sizes_come_from_the_yaml_beside_the_weights():
    flow, vocoder = read_cosyvoice_yaml(RELEASED_YAML)
    assert flow == FlowConfig(inference_cfg_rate=0.6)
    assert vocoder == VocoderConfig()
