"""Quantized copies of model folders: they open everywhere, and old folders are read as before."""

from __future__ import annotations

import pytest
import torch

import echat
from echat.checkpoint import read_tensors
from echat.config import ConfigError
from echat.infer.loading import find_model
from echat.model.model_folder import load_model, stored_dtype
from echat.model.optimized import optimize
from echat.model_files import CONFIG_FILE, SPEECH_TOKENIZER_FOLDER, WEIGHTS_FILE
from echat.quantized_weights import INT4_GROUP_OF, read_weights
from echat.release.quantization import parse_choices, quantize_folder
from echat.release.weight_sources import open_weight_source
from echat.token2wav.speech_tokenizer import SpeechTokenizer
from echat.token2wav.token2wav import Token2Wav

TINY = "echat-tiny"


@pytest.fixture(scope="module")
def quantized(tmp_path_factory):
    """The shipped model, and a copy of it in 4 bits (layers) and 8 bits."""
    output = tmp_path_factory.mktemp("models") / "quantized"
    return find_model(TINY), output, quantize_folder(find_model(TINY), output, parse_choices([]))


def test_every_part_is_smaller_and_near(quantized):
    _, output, reports = quantized
    assert [report.part for report in reports] == [
        *("encoder", "adapter", "layers", "tables", "heads", "flow", "vocoder", "speech_tokenizer")
    ]
    for report in reports:
        limit = 0.1 if "int4-32" in report.schemes else 0.01
        assert 0 < report.error < limit, report
        assert report.bytes_after < 0.55 * report.bytes_before, report
    total = sum(report.bytes_after for report in reports if report.part not in ("flow", "vocoder"))
    files = [output / WEIGHTS_FILE, output / SPEECH_TOKENIZER_FOLDER / WEIGHTS_FILE]
    headers = sum(path.stat().st_size for path in files) - total
    assert 0 <= headers < 100_000


def test_the_engine_opens_it_in_the_usual_precision(quantized):
    source, output, _ = quantized
    assert stored_dtype(output) == stored_dtype(source) == torch.float16
    engine = echat.load(output)
    assert engine.model.projection.weight.dtype == torch.float32
    stored = read_weights(output / WEIGHTS_FILE, None).tensors
    for name, tensor in engine.model.state_dict().items():
        assert torch.equal(tensor, stored[name].float()), name
    half = load_model(output, torch.bfloat16).model
    assert torch.equal(half.speech_head.weight, engine.model.speech_head.weight.bfloat16())
    assert load_model(output, None).model.speech_head.weight.dtype == torch.float16
    assert engine.need_token2wav().voices.keys() == Token2Wav.from_folder(source / "token2wav").voices.keys()
    codebooks = (SpeechTokenizer.from_folder(at / SPEECH_TOKENIZER_FOLDER) for at in (source, output))
    one, other = (tokenizer.quantizer.codebook for tokenizer in codebooks)
    assert torch.equal(one, other)


@pytest.mark.vnni
@pytest.mark.parametrize("group", INT4_GROUP_OF)
def test_int4_execution_computes_with_the_stored_codes(tmp_path, group):
    quantize_folder(find_model(TINY), tmp_path / "q", parse_choices([f"layers={group}"]))
    model = load_model(tmp_path / "q").model
    packed = optimize(model, "int4")
    layer, stored = packed.llm.layers[0], model.llm.model.layers[0]
    assert layer.gate_up.group == INT4_GROUP_OF[group]
    eye = torch.eye(256)
    expected = torch.cat([stored.mlp.gate_proj.weight, stored.mlp.up_proj.weight]).T
    assert torch.equal(layer.gate_up(eye), expected.bfloat16().float())
    with torch.no_grad():
        stored.mlp.gate_proj.weight[0, 0] += 1.0  # lies on the codes no more: rounded anew
    again = optimize(model, "int4").llm.layers[0].gate_up(eye)
    assert abs(float(again[0, 0] - stored.mlp.gate_proj.weight[0, 0].detach())) < 0.1


@pytest.mark.vnni
def test_int8_execution_computes_with_the_stored_codes(quantized):
    _, output, _ = quantized
    model = load_model(output).model
    raw = read_tensors(output / WEIGHTS_FILE)
    head = optimize(model, "int8").speech_head
    scale = raw["speech_head.weight.scale"].float()
    assert torch.equal(head.scale, scale / 127)  # times the scale of a row of the input
    codes = (model.speech_head.weight / scale[:, None]).round().to(torch.int8)
    assert torch.equal(codes, raw["speech_head.weight.int8"])


def test_it_is_a_source_of_weights(quantized):
    _, output, _ = quantized
    expected = load_model(output).model.state_dict()
    for source in (output, output / WEIGHTS_FILE):
        found = open_weight_source(str(source)).tensors
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name].float(), tensor) for name, tensor in expected.items())


def test_saved_again_it_is_plain(quantized, tmp_path):
    _, output, _ = quantized
    engine = echat.load(output)
    engine.save(tmp_path / "again", torch.float32)
    again = echat.load(tmp_path / "again")
    state = again.model.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in engine.model.state_dict().items())
    state = again.need_token2wav().state_dict()  # is saved in half precision
    expected = engine.need_token2wav().state_dict()
    assert all(torch.equal(state[name], tensor.half().float()) for name, tensor in expected.items())
    assert "quantization" not in (tmp_path / "again" / CONFIG_FILE).read_text()


def test_quantized_again_with_all_plain_it_is_dequantized(quantized, tmp_path):
    _, output, _ = quantized
    parts = ("encoder", "adapter", "layers", "tables", "heads", "flow", "vocoder", "speech_tokenizer")
    quantize_folder(output, tmp_path / "plain", parse_choices([f"{part}=plain" for part in parts]))
    assert not (tmp_path / "plain" / CONFIG_FILE).read_text().count("quantization")
    expected, found = (load_model(at).model.state_dict() for at in (output, tmp_path / "plain"))
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_a_plain_folder_is_read_as_it_lies():
    folder = find_model(TINY)
    raw = read_tensors(folder / WEIGHTS_FILE)
    assert "quantization" not in (folder / CONFIG_FILE).read_text()
    model = load_model(folder, None).model.state_dict()
    assert model.keys() == raw.keys()
    assert all(torch.equal(model[name], tensor) for name, tensor in raw.items())


def test_globs_come_before_parts():
    declared = parse_choices(["tables=plain", "llm.model.layers.0.*=int8"])
    assert next(iter(declared)) == "llm.model.layers.0.*"
    assert declared["tables"] == "plain" and declared["layers"] == "int4-32"
    with pytest.raises(ValueError, match="did you mean 'layers'"):
        parse_choices(["layer=int8"])
    with pytest.raises(ValueError, match="expected layers= and one of plain, int8"):
        parse_choices(["layers=int3"])


def test_an_unknown_scheme_is_refused(quantized, tmp_path):
    _, output, _ = quantized
    copied = tmp_path / "copy"
    quantize_folder(output, copied, parse_choices([]))
    text = (copied / CONFIG_FILE).read_text()
    (copied / CONFIG_FILE).write_text(text.replace("int4-32", "int3"))
    with pytest.raises(ConfigError, match="expected one of the schemes plain, int8, .*found 'int3'.*again"):
        load_model(copied)
    with pytest.raises(ValueError, match="found 'int3'"):
        open_weight_source(str(copied))


def test_an_existing_folder_is_not_written_over(quantized):
    source, output, _ = quantized
    with pytest.raises(ValueError, match="expected a new folder"):
        quantize_folder(source, output, parse_choices([]))
