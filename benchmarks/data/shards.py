"""Shards to measure with: records in the published layout, of made-up and of real sound."""

import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile

from echat.data.audio_loading import AudioLoader
from echat.data.formats.corpus import open_corpus

RATE = 16000
TASKS = ("<TRANSCRIBE>", "<S2TCHAT> <TEXT2TOKEN> <THINK>", "<TEXT2TOKEN>", "<TEXT2TEXT>")  # in turn
WORDS = ["i", "lost", "my", "keys", "on", "the", "bus", "and", "she", "found", "them", "near", "our", "house"]


def write_shards(
    folder: Path,
    megabytes: float,
    shards: int | None,
    per_shard: int,
    real: list[str],
    seconds: float,
    bare: bool = False,
) -> list[str]:
    """Tars of so many records each and a list of them, as many as the size or the count asks for."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    sounds = sounds_of(real, seconds, rng)
    written, tars, number = 0.0, [], 0
    while len(tars) < shards if shards is not None else written < megabytes * 1e6:
        path = folder / f"shards_{len(tars):09d}.tar"
        with tarfile.open(path, "w") as tar:
            for _ in range(per_shard):
                add_record(tar, f"record-{number:07d}", TASKS[number % 4], next(sounds), rng, bare)
                number += 1
                if shards is None and written + tar.offset > megabytes * 1e6:
                    break
        written += path.stat().st_size
        tars.append(str(path))
    (folder / "shards_list.txt").write_text("".join(f"{tar}\n" for tar in tars))
    return tars


def sounds_of(real: list[str], seconds: float, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Endless 16 kHz int16: real clips and noise that comes and goes, in turn; lengths around ``seconds``."""
    clips = _real(real)
    noise = rng.standard_normal(60 * RATE).astype(np.float32)
    while True:
        count = int(RATE * np.clip(rng.gamma(3.0, seconds / 3.0), 0.3 * seconds, 3.0 * seconds))
        begin = int(rng.integers(len(noise) - count)) if count < len(noise) else 0
        swell = np.abs(np.sin(np.arange(count) * np.float32(12.0 / RATE) + rng.random()))
        yield (3000 * noise[begin : begin + count] * swell).astype(np.int16)
        if real:
            yield next(clips)


def _real(paths: list[str]) -> Iterator[np.ndarray]:
    reader = AudioLoader(cache_mb=0)
    while True:
        for path in paths:
            corpus = open_corpus(path, within="/")
            for index in range(len(corpus)):
                audio = corpus[index].audio
                if audio is not None:
                    yield (reader.read(audio) * 32767).astype(np.int16)


def add_record(
    tar: tarfile.TarFile, key: str, task: str, sound: np.ndarray, rng: np.random.Generator, bare: bool
) -> None:
    """One record; text to text has a second of sound too, as the published writer needs some.

    ``bare`` records have sound only where their task takes it, as other writers leave it out.
    """
    if task == TASKS[3]:
        sound = sound[:RATE]
    seconds = len(sound) / RATE
    words = " ".join(rng.choice(WORDS, size=max(3, int(2.5 * seconds))))
    reply = " ".join(rng.choice(WORDS, size=12))
    extra = {
        "question": words if task != TASKS[0] else None,
        "think_str": f"The user says: {words}. They sound calm.",
        "speech_token": rng.integers(0, 4096, size=120).tolist() if "TOKEN" in task else None,
    }
    stream = io.BytesIO()
    soundfile.write(stream, sound, RATE, format="WAV", subtype="PCM_16")
    members = {
        "txt": (words if task == TASKS[0] else reply).encode(),
        "wav": stream.getvalue() if not bare or task in TASKS[:2] else b"",
        "task": task.encode(),
        **{name: b"none" for name in ("lang", "speaker", "emotion", "gender")},
        "duration": b"0",
        "extra": json.dumps({name: value for name, value in extra.items() if value}).encode(),
    }
    for suffix, data in ((suffix, data) for suffix, data in members.items() if data):
        info = tarfile.TarInfo(f"{key}.{suffix}")
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data))
