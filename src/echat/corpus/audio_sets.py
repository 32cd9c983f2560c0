"""Audio of one set of a corpus, rendered by a pool of worker processes.

Each finished clip is recorded at once in `finished.jsonl`: an interrupted build renders only the rest.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from echat.audio.features import SAMPLE_RATE
from echat.audio.waveform import write
from echat.corpus.en import LANGUAGE
from echat.corpus.en.voices import REPLY_VOICE
from echat.corpus.manifests import Row, json_line, read_growing_jsonl, reply_audio_key, write_jsonl
from echat.corpus.recordings import real_clips
from echat.corpus.spoken_questions import SpokenQuestion, render_question
from echat.corpus.synthesis.tts_engines import speak


@dataclass(frozen=True)
class ReadingText:
    """A text for the reply voice."""

    key: str
    text: str
    split: str

    def record_fields(self) -> Row:
        return asdict(self)


@dataclass(frozen=True)
class AudioSet:
    """A set of clips: its folder, the suffix of its audio, and a data pack of recordings of sound events."""

    folder: Path
    audio: str
    data_pack: Path | None

    def render(self, item: SpokenQuestion | ReadingText) -> Row:
        """Render one clip and write it; returns its record."""
        audio = f"audio/{item.key}.{self.audio}"
        if isinstance(item, ReadingText):
            wave = speak(item.text, REPLY_VOICE)
            record: Row = {"key": item.key, "text": item.text, "lang": LANGUAGE, "split": item.split}
            record |= {"voice": REPLY_VOICE.name, "duration_s": round(len(wave) / SAMPLE_RATE, 3)}
        else:
            split = "test" if item.split == "test" else "train"
            clips = real_clips(self.data_pack, split) if self.data_pack is not None else {}
            wave, record = render_question(item, clips)
            if reply := item.dialogue.reply:
                record["reply_audio"] = f"../answers/audio/{reply_audio_key(reply)}.{self.audio}"
        write(self.folder / audio, wave, SAMPLE_RATE)
        return {"key": record.pop("key"), "audio": audio, **record}


def build_set(
    target: AudioSet,
    items: Sequence[SpokenQuestion | ReadingText],
    workers: int,
    progress: Callable[[int, int], object],
) -> None:
    """Render the clips that are missing; `manifest.jsonl` appears when all are there."""
    folder = target.folder
    (folder / "audio").mkdir(parents=True, exist_ok=True)
    log = folder / "finished.jsonl"
    finished = {row["key"]: row for row in read_growing_jsonl(log, repair=True)}
    missing = [item for item in items if not _is_current(finished.get(item.key), item)]
    progress(len(items) - len(missing), len(items))
    with log.open("a", encoding="utf-8") as out:
        for done, record in enumerate(_render_all(target, missing, workers), 1):
            finished[record["key"]] = record
            out.write(json_line(record))
            out.flush()
            progress(len(items) - len(missing) + done, len(items))
    write_jsonl(folder / "manifest.jsonl", (finished[item.key] for item in items))


def _is_current(record: Row | None, item: SpokenQuestion | ReadingText) -> bool:
    """Whether a finished record is of this item, and not of an older scenario under the same key."""
    wanted = item.record_fields().items()
    return record is not None and all(record.get(name) == value for name, value in wanted)


def _render_all(
    target: AudioSet, items: Sequence[SpokenQuestion | ReadingText], workers: int
) -> Iterator[Row]:
    if workers == 1 or len(items) < 2:
        yield from map(target.render, items)
        return
    with multiprocessing.get_context("spawn").Pool(min(workers, len(items)), _exit_with_parent) as pool:
        yield from pool.imap(target.render, items, chunksize=4)


def _exit_with_parent() -> None:
    """Initializer of a worker: it ends with its parent, even a killed one, instead of waiting for ever."""

    def wait_and_exit() -> None:
        parent = multiprocessing.parent_process()
        assert parent is not None
        parent.join()
        os._exit(1)

    threading.Thread(target=wait_and_exit, daemon=True).start()
