"""A CTranslate2 file made of a random Whisper of the library: our encoder computes what that one does."""

import importlib.util
import struct
from pathlib import Path

import pytest
import torch
from transformers import WhisperConfig, WhisperModel

from echat.model.speech_encoder import EncoderConfig, SpeechEncoder
from echat.release.weight_sources import open_weight_source
from echat.train.weights.init_weights import init_from

SCRIPT = Path(__file__).parents[2] / "scripts" / "whisper_from_ctranslate2.py"
SHAPE = {"n_mels": 80, "dim": 128, "blocks": 2, "heads": 2, "ffn": 64}


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("whisper_from_ctranslate2", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def whisper():
    torch.manual_seed(0)
    model = WhisperModel(WhisperConfig(
        vocab_size=60, num_mel_bins=80, d_model=128, encoder_layers=2, encoder_attention_heads=2,
        encoder_ffn_dim=64, decoder_layers=1, decoder_attention_heads=2, decoder_ffn_dim=16,
        max_source_positions=50, pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
    ))  # fmt: skip
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if tensor.dim() == 1:
                tensor.normal_()  # ones and zeros would not test norms and biases
            if "embed_positions" not in name:
                tensor.copy_(tensor.half().float())
    return model.eval()


def variables_of(encoder) -> dict[str, torch.Tensor]:
    """As the format names them."""
    found = {"position_encodings/encodings": encoder.embed_positions.weight}
    for name in ("conv1", "conv2"):
        conv = getattr(encoder, name)
        found |= {f"{name}/weight": conv.weight, f"{name}/bias": conv.bias}
    norms, linears = {"layer_norm": encoder.layer_norm}, {}
    for index, layer in enumerate(encoder.layers):
        attention, place = layer.self_attn, f"layer_{index}"
        norms[f"{place}/self_attention/layer_norm"] = layer.self_attn_layer_norm
        norms[f"{place}/ffn/layer_norm"] = layer.final_layer_norm
        linears[f"{place}/self_attention/linear_1"] = attention.out_proj
        linears |= {f"{place}/ffn/linear_0": layer.fc1, f"{place}/ffn/linear_1": layer.fc2}
        parts = (attention.q_proj, attention.k_proj, attention.v_proj)
        biases = (parts[0].bias, torch.zeros(128), parts[2].bias)
        found[f"{place}/self_attention/linear_0/weight"] = torch.cat([part.weight for part in parts])
        found[f"{place}/self_attention/linear_0/bias"] = torch.cat(biases)
    for name, norm in norms.items():
        found |= {f"{name}/gamma": norm.weight, f"{name}/beta": norm.bias}
    for name, linear in linears.items():
        found |= {f"{name}/weight": linear.weight, f"{name}/bias": linear.bias}
    return {f"encoder/{name}": tensor.detach() for name, tensor in found.items()}


def write(
    path: Path, variables: dict[str, torch.Tensor], spec: str = "WhisperSpec", version: int = 6
) -> Path:
    def name(text: str) -> bytes:
        return struct.pack("<H", len(text) + 1) + text.encode() + b"\0"

    content = struct.pack("<I", version) + name(spec) + struct.pack("<II", 3, len(variables))
    for key, tensor in variables.items():
        kind = 0 if "position" in key else 4  # float32 or float16
        data = (tensor.float() if kind == 0 else tensor.half()).contiguous().numpy().tobytes()
        content += name(key) + struct.pack(f"<B{tensor.dim()}I", tensor.dim(), *tensor.shape)
        content += struct.pack("<BI", kind, len(data)) + data
    content += struct.pack("<I", 1) + name("decoder/projection/weight") + name("decoder/embeddings/weight")
    path.write_bytes(content)
    return path


def test_our_encoder_equals_that_of_the_library(script, whisper, tmp_path):
    others = {"decoder/embeddings/weight": torch.randn(6, 4), "decoder/scale": torch.tensor(2.0)}
    source = write(tmp_path / "model.bin", variables_of(whisper.encoder) | others)
    script.convert(source, tmp_path / "folder")
    assert open_weight_source(str(tmp_path / "folder")).parts == {"encoder": SHAPE}
    holder = torch.nn.ModuleDict({"encoder": SpeechEncoder(EncoderConfig(**SHAPE, max_frames=50))})
    init_from(holder, {"encoder": str(tmp_path / "folder")})
    mel = torch.randn(2, 100, 80)
    with torch.no_grad():
        found, _ = holder["encoder"].eval()(mel, torch.tensor([100, 100]))
        wanted = whisper.encoder(mel.transpose(1, 2)).last_hidden_state
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


def test_aliases_name_the_tensor_they_stand_for(script, tmp_path):
    table = torch.randn(6, 4).half()
    found = script.read_variables(write(tmp_path / "model.bin", {"decoder/embeddings/weight": table}))
    assert torch.equal(found["decoder/projection/weight"], table)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"spec": "TransformerSpec"}, "expected a WhisperSpec"),
        ({"version": 3}, "expected CTranslate2 binary version 6"),
    ],
)
def test_other_files_are_refused(script, tmp_path, other, message):
    with pytest.raises(ValueError, match=message):
        script.read_variables(write(tmp_path / "model.bin", {}, **other))
