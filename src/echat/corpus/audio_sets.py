"""The sounds of a set: made by workers, each noted as soon as it is finished, and never made twice."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from echat.audio.features import SAMPLE_RATE
from echat.audio.waveform import write
from echat.checkpoint import atomic_path
from echat.corpus.spoken_questions import SpokenQuestion, record_fields, render_question
from echat.corpus.synthesis.sound_events import real_clips
from echat.corpus.synthesis.tts_engines import REPLY_VOICE, speak


@dataclass(frozen=True)
class ReadingText:
    """A text for the reply voice."""

    key: str
    text: str
    split: str


@dataclass(frozen=True)
class Job:
    """One sound to make, in the terms of a worker process."""

    item: SpokenQuestion | ReadingText
    folder: Path  # of the set
    audio: str  # suffix
    data_pack: Path | None

    @property
    def key(self) -> str:
        return self.item.dialogue.key if isinstance(self.item, SpokenQuestion) else self.item.key

    def matches(self, record: dict[str, Any] | None) -> bool:
        """Whether a finished record is of this job, and not of an older scenario under the same key."""
        wanted = (
            record_fields(self.item.dialogue) if isinstance(self.item, SpokenQuestion) else asdict(self.item)
        )
        return record is not None and all(record.get(name) == value for name, value in wanted.items())


def reply_audio_key(text: str) -> str:
    """Name of the sound of a reply: one file per distinct text."""
    return "reply-" + hashlib.sha256(text.encode()).hexdigest()[:12]


def build_set(folder: Path, jobs: list[Job], workers: int, progress: Callable[[int, int], object]) -> None:
    """Make what is missing, noting each finished record at once; the manifest appears when all are there."""
    (folder / "audio").mkdir(parents=True, exist_ok=True)
    notes = folder / "finished.jsonl"
    finished = {row["key"]: row for row in read_finished(notes)}
    missing = [job for job in jobs if not job.matches(finished.get(job.key))]
    progress(len(jobs) - len(missing), len(jobs))
    with notes.open("a", encoding="utf-8") as out:
        for done, record in enumerate(_run_jobs(missing, workers), 1):
            finished[record["key"]] = record
            out.write(json.dumps(record, ensure_ascii=False) + "\n")
            out.flush()
            progress(len(jobs) - len(missing) + done, len(jobs))
    write_jsonl(folder / "manifest.jsonl", [finished[job.key] for job in jobs])


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write rows as JSON lines; the file appears when all are there."""
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as out:
        for row in rows:
            out.write(json.dumps(row, ensure_ascii=False) + "\n")


def run_job(job: Job) -> dict[str, Any]:
    """Make the sound of one job and write it; returns its record."""
    audio = f"audio/{job.key}.{job.audio}"
    if isinstance(job.item, ReadingText):
        wave = speak(job.item.text, REPLY_VOICE)
        record: dict[str, Any] = {
            "key": job.key,
            "text": job.item.text,
            "lang": "en",
            "split": job.item.split,
        }
        record |= {"voice": REPLY_VOICE.name, "duration_s": round(len(wave) / SAMPLE_RATE, 3)}
    else:
        question = job.item
        clip_split = "test" if question.split == "test" else "train"
        clips = real_clips(job.data_pack, clip_split) if job.data_pack is not None else {}
        wave, record = render_question(question, clips)
        if question.dialogue.reply:
            record["reply_audio"] = f"../answers/audio/{reply_audio_key(question.dialogue.reply)}.{job.audio}"
    write(job.folder / audio, wave, SAMPLE_RATE)
    return {"key": record.pop("key"), "audio": audio, **record}


def _run_jobs(jobs: list[Job], workers: int) -> Iterator[dict[str, Any]]:
    if workers == 1 or len(jobs) < 2:
        yield from map(run_job, jobs)
        return
    with multiprocessing.get_context("spawn").Pool(min(workers, len(jobs)), _start_worker) as pool:
        yield from pool.imap(run_job, jobs, chunksize=4)


def _start_worker() -> None:
    """A worker ends with its parent, even a killed one, instead of waiting for ever."""

    def end_with_parent() -> None:
        parent = multiprocessing.parent_process()
        assert parent is not None
        parent.join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()


def read_finished(path: Path) -> Iterable[dict[str, Any]]:
    """Finished records; the last line may be torn when the build was killed while writing it."""
    if not path.exists():
        return []
    whole = path.read_bytes()
    kept = whole[: whole.rfind(b"\n") + 1]
    if len(kept) < len(whole):
        with atomic_path(path) as temporary:
            temporary.write_bytes(kept)
    return [json.loads(line) for line in kept.decode().splitlines()]
