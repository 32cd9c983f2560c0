"""Build a spoken corpus from the scenario grammar: answers, test, dev and training questions, real speech.

Every sound depends on the seed and its key alone, so the number of workers and interruptions change nothing.
A build that was stopped, even killed, goes on where it was. Layout of the folder::

    build.yaml                       the resolved configuration
    answers/{manifest.jsonl,audio/}  every reply and some reading matter in the reply voice
    {test,dev,train}/...             spoken questions; `reply_audio` points into answers/audio
    free/...                         questions in freer wordings, or their words in any order
    jumbled/...                      spoken words in no order, to which nothing is answered
    text/{manifest,dev}.jsonl        many more dialogues without sound, for a language model to read
    real/manifest.jsonl              recordings of people, when a data pack is given
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Literal

from pydantic import Field

from echat.config import Config, load_config, save_config
from echat.corpus.audio_sets import Job, ReadingText, build_set, reply_audio_key, write_jsonl
from echat.corpus.en.scenario_grammar import Dialogue, load_scenarios, sample_cue_pairs, sample_dialogues
from echat.corpus.recordings import prompt_texts, write_recordings_manifest
from echat.corpus.spoken_questions import CONDITIONS, SpokenQuestion
from echat.corpus.text_augmentation import (
    known_words,
    perturb_words,
    perturbed_dialogues,
    random_word_dialogues,
    random_words_row,
    shuffle_words,
)
from echat.errors import Arguments, command

Progress = Callable[[str, int, int], None]  # set, done, total
SetName = Literal["text", "answers", "test", "dev", "train", "jumbled", "free", "real"]
SETS: tuple[SetName, ...] = ("text", "answers", "test", "dev", "train", "jumbled", "free", "real")
_SILENT: tuple[SetName, ...] = ("text", "real")  # sets of which no sound is made here


class BuildConfig(Config):
    """What to build, and where."""

    folder: Path  # of the corpus
    seed: int = 1
    workers: int = Field(1, ge=1)  # processes
    audio: Literal["flac", "wav"] = "flac"
    data_pack: Path | None = None  # of real recordings: sound events, prompts to read, real speech
    sets: tuple[SetName, ...] = SETS
    text: int = Field(40000, ge=1)  # dialogues to read
    text_loose: float = Field(0.5, ge=0, le=1)  # share of them in a freer wording
    scattered: int = Field(60000, ge=0)  # dialogues to read whose words stand in any order
    jumbles: int = Field(20000, ge=0)  # texts of words in no order, to learn to copy from
    train: int = Field(8000, ge=1)  # questions
    free: int = Field(0, ge=0)  # questions said in other words or in any order
    jumbled: int = Field(0, ge=0)  # spoken texts of words in no order
    dev: int = Field(200, ge=1)
    test: int = Field(360, ge=3)  # besides the pairs
    test_pairs: int = Field(90, ge=0)  # same words, same voice, one cue apart
    reading: int = Field(1500, ge=0)  # user sentences that the reply voice reads, to learn to speak from


def build(recipe: Path | str, overrides: Sequence[str] = ()) -> Path:
    """Build the corpus of a YAML recipe (a `BuildConfig`) under a progress bar; returns its folder."""
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    config = load_config(BuildConfig, recipe, overrides)
    columns = (TextColumn("{task.description:>8}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Bars(*columns) as bars:
        tasks = {str(name): bars.add_task(name, total=None) for name in config.sets if name not in _SILENT}
        return build_corpus(
            config, lambda name, done, total: bars.update(tasks[name], completed=done, total=total)
        )


def build_corpus(config: BuildConfig, progress: Progress | None = None) -> Path:
    """Build or complete a corpus; returns its folder. ValueError where one of another seed stands."""
    config.folder.mkdir(parents=True, exist_ok=True)
    _claim(config)
    for name in config.sets:
        if name == "real":
            if config.data_pack is not None:
                write_recordings_manifest(config.data_pack, config.folder / "real" / "manifest.jsonl")
            continue
        if name == "text":
            _write_text(config)
            continue
        folder = config.folder / name
        jobs = [Job(item, folder, config.audio, config.data_pack) for item in _items(config, name)]
        build_set(folder, jobs, config.workers, partial(progress or _silently, name))
    return config.folder


def _write_text(config: BuildConfig) -> None:
    """Dialogues without sound, other than those spoken: as they are, in freer words, scattered; jumbles."""
    folder = config.folder / "text"
    folder.mkdir(exist_ok=True)
    rng = random.Random(config.seed)
    words = known_words(config.data_pack)
    train = [
        perturb_words(dialogue, words, rng) if rng.random() < config.text_loose else dialogue
        for dialogue in sample_dialogues("train", config.text, config.seed + 1)
    ]
    rows = [{**asdict(dialogue), "split": "train"} for dialogue in train]
    rows += [
        random_words_row(f"jumble-{index:06d}", words, rng) | {"split": "train"}
        for index in range(config.jumbles)
    ]
    write_jsonl(folder / "manifest.jsonl", rows)
    shuffled = (
        shuffle_words(one, rng) for one in sample_dialogues("train", config.scattered, config.seed + 2)
    )
    write_jsonl(folder / "scattered.jsonl", [{**asdict(one), "split": "train"} for one in shuffled])
    dev = sample_dialogues("dev", config.dev, config.seed + 1)
    write_jsonl(folder / "dev.jsonl", [{**asdict(dialogue), "split": "dev"} for dialogue in dev])


def build_held_out(
    folder: Path | str, seed: int = 1, workers: int = 1, progress: Callable[[int, int], object] | None = None
) -> Path:
    """The held-out questions alone, without real recordings: `folder/manifest.jsonl`, which is returned."""
    config = BuildConfig(folder=Path(folder), seed=seed, workers=workers, sets=("test",))

    def step(_: str, done: int, total: int) -> None:
        if progress is not None:
            progress(done, total)

    made = build_corpus(config, step)
    rows = [json.loads(line) for line in (made / "test" / "manifest.jsonl").read_text("utf-8").splitlines()]
    for row in rows:
        del row["reply_audio"]  # no answers were spoken
        row["audio"] = f"test/{row['audio']}"
    manifest = config.folder / "manifest.jsonl"
    write_jsonl(manifest, rows)
    return manifest


def _items(config: BuildConfig, name: SetName) -> Sequence[SpokenQuestion | ReadingText]:
    if name == "answers":
        return _readings(config)
    if name == "test":
        return [*_test_questions(config), *_test_pairs(config)]
    return [SpokenQuestion(one, name, speaker_key=one.key, seed=config.seed) for one in _drawn(config, name)]


def _drawn(config: BuildConfig, name: SetName) -> Iterator[Dialogue]:
    if name == "free":
        return perturbed_dialogues(config.free, config.seed, known_words(config.data_pack))
    if name == "jumbled":
        return random_word_dialogues(config.jumbled, config.seed, known_words(config.data_pack))
    return sample_dialogues(name, config.train if name == "train" else config.dev, config.seed)


def _test_questions(config: BuildConfig) -> Iterator[SpokenQuestion]:
    for index, dialogue in enumerate(sample_dialogues("test", config.test, config.seed)):
        yield SpokenQuestion(dialogue, "test", dialogue.key, config.seed, CONDITIONS[index % len(CONDITIONS)])


def _test_pairs(config: BuildConfig) -> Iterator[SpokenQuestion]:
    for index, both in enumerate(sample_cue_pairs("test", config.test_pairs, config.seed)):
        name, condition = f"pair-{config.seed}-{index:04d}", CONDITIONS[index % len(CONDITIONS)]
        for dialogue in both:
            yield SpokenQuestion(dialogue, "test", name, config.seed, condition, pair=name)


def _readings(config: BuildConfig) -> list[ReadingText]:
    """Every reply first, so that the corpus is complete; then sentences of users, then prompts."""
    replies = sorted({reply for situation in load_scenarios() for reply in situation.replies.values()})
    readings = [ReadingText(reply_audio_key(text), text, _reading_split(text)) for text in replies]
    seen = set(replies)
    wanted = [dialogue.text for dialogue in sample_dialogues("train", config.reading, config.seed)]
    prompts = prompt_texts(config.data_pack) if config.data_pack and config.reading else []
    for kind, texts in (("user", wanted), ("prompt", prompts)):
        for text in texts:
            if text not in seen:
                seen.add(text)
                key = f"{kind}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
                readings.append(ReadingText(key, text, _reading_split(text)))
    return readings


def _reading_split(text: str) -> str:
    """One text in 25 is kept for validation."""
    return "dev" if hashlib.sha256(text.encode()).digest()[0] % 25 == 0 else "train"


def _claim(config: BuildConfig) -> None:
    """Store the configuration, or compare with the one the folder was begun with."""
    path = config.folder / "build.yaml"
    deciding = ("seed", "audio")
    if path.exists():
        old = load_config(BuildConfig, path)
        for name in deciding:
            if getattr(old, name) != getattr(config, name):
                raise ValueError(
                    f"{path}, key {name}: expected {getattr(old, name)!r}, as this corpus was begun, "
                    f"found {getattr(config, name)!r}; choose another folder or delete this one"
                )
    save_config(config, path)


def _silently(name: str, done: int, total: int) -> None:
    """Progress that nobody watches."""


@command
def main(arguments: Arguments) -> None:
    """`python -m echat.corpus.build recipe.yaml [key=value ...]`"""
    parser = argparse.ArgumentParser(prog="python -m echat.corpus.build", description=__doc__)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    given = parser.parse_args(arguments)
    build(given.recipe, given.overrides)


if __name__ == "__main__":
    sys.exit(main())
