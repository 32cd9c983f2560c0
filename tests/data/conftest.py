"""A small corpus of noise with made-up words, and a tokenizer trained on it."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from echat.audio.waveform import write
from echat.data.formats.manifest import read_manifest
from echat.data.sample import Sample
from echat.data.tools.text_tokenizer_training import save_tokenizer, texts_of, train_tokenizer
from echat.dialogue.vocabulary import Vocabulary
from echat.model.text_tokenizer import TextTokenizer

WORDS = [
    "i",
    "lost",
    "my",
    "keys",
    "on",
    "the",
    "bus",
    "today",
    "and",
    "she",
    "found",
    "them",
    "near",
    "our",
    "old",
    "house",
]
EMOTIONS = ("neutral", "sad", "happy", "angry")


def make_corpus(folder: Path, count: int = 24, codec_size: int = 32, seed: int = 0) -> Path:
    """A manifest of ``count`` dialogues with 0.4 to 0.9 s of noise each."""
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        name = f"audio/{number:03d}.wav"
        (folder / "audio").mkdir(parents=True, exist_ok=True)
        samples = int(16000 * rng.uniform(0.4, 0.9))
        write(folder / name, (0.1 * rng.standard_normal(samples)).astype(np.float32), 16000)
        rows.append(
            {
                "key": f"clip-{number:03d}",
                "audio": name,
                "text": " ".join(rng.choice(WORDS, size=3)),
                "emotion": EMOTIONS[number % 4],
                "gender": ("female", "male", None)[number % 3],
                "age": ("adult", "old", "child")[number % 3],
                "sound_event": (None, "cough")[number % 2],
                "reply": " ".join(rng.choice(WORDS, size=3)),
                "reply_emotion": "中立",
                "thought": "The user sounds calm.",
                "speech_ids": rng.integers(0, codec_size, size=40).tolist(),
                "split": "train" if number % 6 else "dev",
                "duration_s": samples / 16000,
                "situation": "keys",
            }
        )
    path = folder / "manifest.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="session", autouse=True)
def _indexes_stay_here(tmp_path_factory):
    """Indexes of folders that nobody may write in."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def published(tmp_path) -> Path:
    """The published example data; the tar of its combine set is that of its shard set."""
    folder = tmp_path / "published"
    shutil.copytree(Path(__file__).parents[1] / "assets" / "data", folder)
    (folder / "combine" / "tars").mkdir(exist_ok=True)
    shutil.copy(folder / "shard" / "shards_000000000.tar", folder / "combine" / "tars")
    return folder


@pytest.fixture(scope="session")
def manifest(tmp_path_factory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="session")
def samples(manifest) -> list[Sample]:
    return read_manifest(manifest)


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory, samples) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer") / "bpe"
    save_tokenizer(train_tokenizer(texts_of(samples), 400), folder)
    return folder


@pytest.fixture(scope="session")
def tokenizer(tokenizer_folder) -> TextTokenizer:
    return TextTokenizer.from_folder(tokenizer_folder)


@pytest.fixture(scope="session")
def vocabulary(tokenizer) -> Vocabulary:
    return Vocabulary.from_tokenizer(tokenizer, codec_size=32)
