"""A corpus of noise and one miniature recipe per objective."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.multiprocessing as processes
import yaml

from echat.audio.waveform import write
from echat.data.formats.manifest import read_manifest
from echat.data.tools.text_tokenizer_training import save_tokenizer, texts_of, train_tokenizer
from echat.train.distributed import init_distributed, shutdown_distributed

WORDS = ("i", "lost", "my", "keys", "on", "the", "bus", "today")
EMOTIONS = ("neutral", "sad", "happy", "angry")
ENCODER = {"dim": 16, "blocks": 1, "heads": 2, "ffn": 16, "max_frames": 600, "dropout": 0.1}
MODEL = {
    "encoder": ENCODER,
    "adapter": {"dim": 16, "blocks": 1, "heads": 2, "ffn": 16, "max_frames": 200, "dropout": 0.1},
    "llm": {"vocab_size": 400, "dim": 16, "layers": 1, "heads": 2, "kv_heads": 1, "mlp": 16},
    "speech_codec_size": 32,
}


@pytest.fixture(scope="session")
def corpus(tmp_path_factory) -> Path:
    """Folder with ``manifest.jsonl`` and ``tokenizer/``."""
    folder = tmp_path_factory.mktemp("corpus")
    rng = np.random.default_rng(0)
    rows = []
    for number in range(16):
        samples = int(16000 * rng.uniform(0.5, 0.9))
        write(folder / f"{number}.wav", (0.1 * rng.standard_normal(samples)).astype(np.float32), 16000)
        rows.append(
            {
                "key": f"clip-{number}",
                "audio": f"{number}.wav",
                "text": " ".join(rng.choice(WORDS, size=3)),
                "emotion": EMOTIONS[number % 4],
                "gender": "female",
                "age": "adult",
                "sound_event": None,
                "reply": " ".join(rng.choice(WORDS, size=3)),
                "reply_emotion": "中立",
                "thought": "The user sounds calm.",
                "speech_ids": rng.integers(0, 32, size=samples // 640 - 1).tolist(),
                "split": "dev" if number % 8 == 0 else "train",
                "duration_s": samples / 16000,
            }
        )
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (folder / "manifest.jsonl").write_text("".join(lines), encoding="utf-8")
    tokenizer = train_tokenizer(texts_of(read_manifest(folder / "manifest.jsonl")), 400)
    save_tokenizer(tokenizer, folder / "tokenizer")
    return folder


@pytest.fixture(scope="session")
def talkative(corpus, tmp_path_factory) -> Path:
    """The corpus with every label and enough speech ids to mix text and speech: it serves every task."""
    folder = tmp_path_factory.mktemp("talkative")
    rng = np.random.default_rng(1)
    rows = [json.loads(line) for line in (corpus / "manifest.jsonl").read_text().splitlines()]
    for number, row in enumerate(rows):
        event = ("cough", "laugh", "none")[number % 3]
        ids = rng.integers(0, 32, size=48).tolist()
        row |= {"sound_event": event, "style": "日常口语", "emotion": "neutral", "speech_ids": ids}
        row["audio"] = str(corpus / row["audio"])
    (folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (folder / "tokenizer").symlink_to(corpus / "tokenizer")
    return folder


@pytest.fixture(scope="session")
def foreign(corpus, tmp_path_factory) -> dict[str, str]:
    """Miniature Whisper and Qwen2 folders as their library writes them."""
    from transformers import Qwen2Config, Qwen2ForCausalLM, WhisperConfig, WhisperModel

    folder = tmp_path_factory.mktemp("foreign")
    WhisperModel(WhisperConfig(
        vocab_size=60, num_mel_bins=80, d_model=16, encoder_layers=1, encoder_attention_heads=2,
        encoder_ffn_dim=16, decoder_layers=1, decoder_attention_heads=2, decoder_ffn_dim=16,
        max_source_positions=50, pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
    )).save_pretrained(folder / "whisper")  # fmt: skip
    Qwen2ForCausalLM(Qwen2Config(
        vocab_size=400, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, tie_word_embeddings=True,
    )).save_pretrained(folder / "qwen")  # fmt: skip
    for path in (corpus / "tokenizer").iterdir():
        (folder / "qwen" / path.name).write_bytes(path.read_bytes())
    return {"encoder": str(folder / "whisper"), "llm": str(folder / "qwen")}


def miniature(objective: str, corpus: Path) -> dict[str, Any]:
    """The smallest recipe of an objective."""
    manifest = str(corpus / "manifest.jsonl")
    common = {
        "objective": objective,
        "budget": {"steps": 6},
        "checkpoint": {"every_steps": 2},
        "optimizer": {"lr": 1e-2, "warmup_steps": 2},
        "accumulate": 2,
        "validate_steps": 3,
    }
    source = {"path": manifest, "split": "train"}
    if objective == "encoder_ctc":
        augment = {"speed": 0.1, "noise": 0.5, "time_masks": 1}
        own = {
            "encoder": ENCODER,
            "data": {
                "sources": [source],
                "validation": [{"path": manifest, "split": "dev"}],
                "augment": augment,
                "batch_cost": 80,
                "pool": 6,
            },
        }
    elif objective == "speech_llm":
        tasks = {"asr": 1, "s2s_think_label": 1, "tts": 1, "understand": 1}
        own = {
            "model": MODEL,
            "tokenizer": str(corpus / "tokenizer"),
            "ctc": {"weight": 0.3},
            "data": {
                "sources": [source | {"tasks": tasks}],
                "validation": [{"path": manifest, "split": "dev", "tasks": {"asr": 1, "s2s": 1}}],
                "augment": {"speed": 0.1, "vtlp": 0.1},
                "batch_cost": 400,
                "pool": 6,
            },
        }
    else:
        own = {"data": {"sources": [{"path": manifest}]}, **SPEECH_OUT[objective]}
    return common | own


SPEECH_OUT: dict[str, dict[str, Any]] = {
    "tokenizer": {
        "tokenizer": {"dim": 16, "heads": 2, "hidden": 16, "blocks_before": 1, "blocks_after": 1},
        "batch_seconds": 2,
    },
    "flow": {
        "flow": {
            "input_size": 16,
            "vocab_size": 32,
            "encoder": {
                "input_size": 16,
                "output_size": 16,
                "attention_heads": 2,
                "linear_units": 16,
                "num_blocks": 1,
            },
            "estimator": {
                "channels": [32, 32],
                "attention_head_dim": 16,
                "num_heads": 2,
                "num_mid_blocks": 1,
            },
        },
        "batch_seconds": 2,
    },
    "vocoder": {
        "vocoder": {"base_channels": 16, "f0_predictor": {"cond_channels": 8}},
        "segment_frames": 16,
        "batch_size": 2,
    },
}
SPEECH_OUT["tokenizer"]["tokenizer"]["quantizer"] = {"size": 32, "dim": 4, "warmup_steps": 2}


@pytest.fixture
def recipe(corpus, tmp_path):
    """``recipe("ctc", run="a", **changes)`` -> path of a YAML file whose run folder is ``tmp_path / run``."""

    def make(objective: str, run: str = "run", **changes: Any) -> Path:
        values = miniature(objective, corpus) | {"output": str(tmp_path / run)} | changes
        path = tmp_path / f"{run}.yaml"
        path.write_text(yaml.safe_dump(values), encoding="utf-8")
        return path

    return make


@pytest.fixture
def shape() -> dict[str, Any]:
    """The miniature shape of the speech language model."""
    return MODEL


@pytest.fixture
def in_processes() -> Callable[..., processes.ProcessContext]:
    """``in_processes(world, function, *arguments)``: ``function(ranks, *arguments)`` in each of them.

    With ``wait=False`` they are still at work when it returns.
    """

    def start(world: int, function: Callable[..., Any], *arguments: Any, wait: bool = True) -> Any:
        job = (world, free_port(), function, arguments)
        return processes.start_processes(as_rank, job, nprocs=world, start_method="fork", join=wait)

    return start


@pytest.fixture
def exact(recipe, shape) -> Path:
    """A recipe without chance: fp32, no dropout, no augmentation; half of the tasks hear nothing."""
    still = {key: value | {"dropout": 0.0} for key, value in shape.items() if key in ("encoder", "adapter")}
    path = recipe("speech_llm", model=shape | still, precision="fp32")
    values = yaml.safe_load(path.read_text())
    values["data"]["augment"] = None
    path.write_text(yaml.safe_dump(values))
    return path


def as_rank(
    rank: int, world: int, port: int, function: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    """``function`` in this process as one of several."""
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": str(rank)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    ranks = init_distributed(torch.device("cpu"))
    function(ranks, *arguments)
    shutdown_distributed(ranks)


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
