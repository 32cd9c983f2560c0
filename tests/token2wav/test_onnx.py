"""Networks that come as ONNX files, tested with small ones of the same signature."""

from pathlib import Path

import pytest
import torch

from echat.token2wav.onnx_session import onnx_session
from echat.token2wav.speaker_embedding import CampPlus
from echat.token2wav.speech_tokenizer import OnnxSpeechTokenizer, load_speech_tokenizer

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


def save(path: Path, nodes, inputs, outputs, constants=()) -> Path:
    helper = onnx.helper
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info(name, kind, shape) for name, kind, shape in inputs],
        [helper.make_tensor_value_info(name, kind, shape) for name, kind, shape in outputs],
        [helper.make_tensor(name, kind, [len(values)], values) for name, kind, values in constants],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(model, str(path))
    return path


def tokenizer_file(folder: Path, stride: int) -> Path:
    """Ids are the first bin of every `stride`-th frame, turned into 0..9."""
    helper, kinds = onnx.helper, onnx.TensorProto
    nodes = [
        helper.make_node("Slice", ["feats", "zero", "end", "axes", "steps"], ["cut"]),
        helper.make_node("Mul", ["cut", "ten"], ["scaled"]),
        helper.make_node("Abs", ["scaled"], ["positive"]),
        helper.make_node("Cast", ["positive"], ["whole"], to=kinds.INT64),
        helper.make_node("Mod", ["whole", "tenth"], ["ids"]),
        helper.make_node("Identity", ["feats_length"], ["length"]),
    ]
    return save(
        folder / "speech_tokenizer_v1.onnx",
        nodes,
        [("feats", kinds.FLOAT, [1, 128, "T"]), ("feats_length", kinds.INT32, [1])],
        [("ids", kinds.INT64, [1, 1, "N"]), ("length", kinds.INT32, [1])],
        [
            ("zero", kinds.INT64, [0, 0]),
            ("end", kinds.INT64, [1, 2**40]),
            ("axes", kinds.INT64, [1, 2]),
            ("steps", kinds.INT64, [1, stride]),
            ("ten", kinds.FLOAT, [100.0]),
            ("tenth", kinds.INT64, [10]),
        ],
    )


def test_released_tokenizer_by_its_file(tmp_path):
    tokenizer_file(tmp_path, stride=4)
    tokenizer = load_speech_tokenizer(tmp_path)
    assert isinstance(tokenizer, OnnxSpeechTokenizer)
    clips = [torch.randn(n) * 0.1 for n in (16_000, 9001)]
    ids = tokenizer.encode(clips)
    assert [len(row) for row in ids] == [25, 14]
    assert all(0 <= i < 10 for row in ids for i in row)
    padded = torch.nn.utils.rnn.pad_sequence(clips, batch_first=True)
    assert tokenizer.encode(padded, torch.tensor([16_000, 9001])) == ids


def test_tokenizer_of_another_rate_is_refused(tmp_path):
    tokenizer = OnnxSpeechTokenizer(tokenizer_file(tmp_path, stride=2))
    with pytest.raises(ValueError, match="expected 25 ids .25 a second., found 50"):
        tokenizer.encode([torch.randn(16_000)])


def test_50_hz_file_is_refused_by_its_hash(tmp_path, monkeypatch):
    path = tokenizer_file(tmp_path, stride=4)
    monkeypatch.setattr("echat.token2wav.onnx_session._TOKENIZER_50HZ_SHA256_START", "")
    with pytest.raises(ValueError, match="found the 50 Hz one"):
        OnnxSpeechTokenizer(path)


def test_more_than_30_seconds_are_refused(tmp_path):
    tokenizer = OnnxSpeechTokenizer(tokenizer_file(tmp_path, stride=4))
    with pytest.raises(ValueError, match="at most 30 s, found 30.1 s"):
        tokenizer.encode([torch.randn(301 * 1600)])


def speaker_file(folder: Path, columns: int) -> Path:
    """The embedding is the first row's bins, repeated and cut."""
    helper, kinds = onnx.helper, onnx.TensorProto
    nodes = [
        helper.make_node("ReduceMean", ["input"], ["mean"], axes=[1], keepdims=0),
        helper.make_node("Concat", ["mean", "mean", "mean"], ["wide"], axis=1),
        helper.make_node("Slice", ["wide", "zero", "end", "axes"], ["output"]),
    ]
    return save(
        folder / "campplus.onnx",
        nodes,
        [("input", kinds.FLOAT, ["B", "T", 80])],
        [("output", kinds.FLOAT, ["B", columns])],
        [("zero", kinds.INT64, [0]), ("end", kinds.INT64, [columns]), ("axes", kinds.INT64, [1])],
    )


def test_speaker_network(tmp_path):
    speaker = CampPlus(speaker_file(tmp_path, 192))
    embedding = speaker(torch.zeros(0), torch.randn(8000))
    assert embedding.shape == (192,)
    assert embedding.abs().max() < 1e-4  # the features' mean over time was taken off


def test_another_network_is_refused(tmp_path):
    speaker = CampPlus(speaker_file(tmp_path, 100))
    with pytest.raises(ValueError, match="192 values, found 100"):
        speaker(torch.zeros(0), torch.randn(8000))


def test_no_network(tmp_path):
    with pytest.raises(ValueError, match="found none"):
        onnx_session(tmp_path / "missing.onnx")
    (tmp_path / "bad.onnx").write_bytes(b"not a network")
    with pytest.raises(ValueError, match="does not load"):
        onnx_session(tmp_path / "bad.onnx")
