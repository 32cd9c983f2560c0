"""Audio of one set of a corpus, rendered by a pool of worker processes.

Each finished clip is recorded at once in `finished.jsonl`: an interrupted build renders only the rest.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from echat.audio.features import SAMPLE_RATE
from echat.audio.waveform import write
from echat.corpus.en import LANGUAGE
from echat.corpus.en.voices import REPLY_VOICE
from echat.corpus.manifests import Row, json_line, read_growing_jsonl, reply_audio_key, write_jsonl
from echat.corpus.recordings import real_clips
from echat.corpus.spoken_questions import SpokenQuestion, record_fields, render_question
from echat.corpus.synthesis.tts_engines import speak


@dataclass(frozen=True)
class ReadingText:
    """A text for the reply voice."""

    key: str
    text: str
    split: str


@dataclass(frozen=True)
class Job:
    """One clip to render; it can be sent to a worker process."""

    item: SpokenQuestion | ReadingText
    folder: Path  # of the set
    audio: str  # suffix
    data_pack: Path | None

    @property
    def key(self) -> str:
        return self.item.dialogue.key if isinstance(self.item, SpokenQuestion) else self.item.key

    def matches(self, record: Row | None) -> bool:
        """Whether a finished record is of this job, and not of an older scenario under the same key."""
        wanted = (
            record_fields(self.item.dialogue) if isinstance(self.item, SpokenQuestion) else asdict(self.item)
        )
        return record is not None and all(record.get(name) == value for name, value in wanted.items())


def build_set(folder: Path, jobs: list[Job], workers: int, progress: Callable[[int, int], object]) -> None:
    """Render the clips that are missing; `manifest.jsonl` appears when all are there."""
    (folder / "audio").mkdir(parents=True, exist_ok=True)
    log = folder / "finished.jsonl"
    finished = {row["key"]: row for row in read_growing_jsonl(log, repair=True)}
    missing = [job for job in jobs if not job.matches(finished.get(job.key))]
    progress(len(jobs) - len(missing), len(jobs))
    with log.open("a", encoding="utf-8") as out:
        for done, record in enumerate(_run_jobs(missing, workers), 1):
            finished[record["key"]] = record
            out.write(json_line(record))
            out.flush()
            progress(len(jobs) - len(missing) + done, len(jobs))
    write_jsonl(folder / "manifest.jsonl", (finished[job.key] for job in jobs))


def _run_jobs(jobs: list[Job], workers: int) -> Iterator[Row]:
    if workers == 1 or len(jobs) < 2:
        yield from map(run_job, jobs)
        return
    with multiprocessing.get_context("spawn").Pool(min(workers, len(jobs)), _exit_with_parent) as pool:
        yield from pool.imap(run_job, jobs, chunksize=4)


def _exit_with_parent() -> None:
    """Initializer of a worker: it ends with its parent, even a killed one, instead of waiting for ever."""

    def wait_and_exit() -> None:
        parent = multiprocessing.parent_process()
        assert parent is not None
        parent.join()
        os._exit(1)

    threading.Thread(target=wait_and_exit, daemon=True).start()


def run_job(job: Job) -> Row:
    """Render one clip and write it; returns its record."""
    audio = f"audio/{job.key}.{job.audio}"
    if isinstance(job.item, ReadingText):
        wave = speak(job.item.text, REPLY_VOICE)
        record: Row = {"key": job.key, "text": job.item.text, "lang": LANGUAGE, "split": job.item.split}
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
