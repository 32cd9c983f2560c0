"""Build of a spoken corpus from the scenario grammar: answers, test, dev and training questions, recordings.

The audio of a record depends on the seed and its key alone, so the number of workers and interruptions change
nothing. A build that was stopped, even killed, resumes. Layout of the folder::

    build.yaml                       the resolved configuration
    answers/{manifest.jsonl,audio/}  every reply and some other texts in the reply voice
    {test,dev,train}/...             spoken questions; `reply_audio` points into answers/audio
    paraphrased/...                  spoken questions in changed or shuffled words
    random_words/...                 spoken random words, without a reply
    text/{manifest,dev}.jsonl        many more dialogues without audio, for language model training
    text/shuffled.jsonl              dialogues without audio whose words are shuffled
    real/manifest.jsonl              recordings of people, when a data pack is given
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator

from echat.config import Config, load_config, save_config
from echat.corpus.audio_sets import AudioSet, ReadingText, build_set
from echat.corpus.en.scenario_grammar import Dialogue, load_scenarios, sample_cue_pairs, sample_dialogues
from echat.corpus.manifests import DEV_ONE_IN, read_jsonl, reply_audio_key, write_jsonl
from echat.corpus.recordings import prompt_texts, write_recordings_manifest
from echat.corpus.spoken_questions import CONDITIONS, SpokenQuestion
from echat.corpus.text_augmentation import (
    NO_AUGMENTATION,
    AugmentationConfig,
    known_words,
    paraphrase,
    paraphrased_dialogues,
    random_word_dialogues,
    random_words_row,
    shuffle_words,
)
from echat.deprecated_commands import run_replacement

Progress = Callable[[str, int, int], object]  # set, done, total
SetName = Literal["text", "answers", "test", "dev", "train", "random_words", "paraphrased", "real"]
SETS: tuple[SetName, ...] = (
    "text", "answers", "test", "dev", "train", "random_words", "paraphrased", "real",
)  # fmt: skip
_WITHOUT_AUDIO: tuple[SetName, ...] = ("text", "real")  # sets for which no audio is made here
_OLD_SETS = {"free": "paraphrased", "jumbled": "random_words"}  # old names, read for one version
_SPLITS = {new: old for old, new in _OLD_SETS.items()}  # `split` of their records keeps the old names


class BuildConfig(Config):
    """What to build, and where."""

    renamed: ClassVar[Mapping[str, str]] = {
        "text_loose": "augmentation.paraphrased_share",
        "scattered": "augmentation.shuffled",
        "jumbles": "augmentation.random_words",
        "free": "augmentation.spoken_paraphrases",
        "jumbled": "augmentation.spoken_random_words",
    }

    folder: Path  # of the corpus
    seed: int = 1
    workers: int = Field(1, ge=1)  # processes
    audio: Literal["flac", "wav"] = "flac"
    data_pack: Path | None = None  # of recordings: sound events, prompts to read, speech
    sets: tuple[SetName, ...] = SETS
    text: int = Field(40000, ge=1)  # dialogues without audio
    train: int = Field(8000, ge=1)  # questions
    dev: int = Field(200, ge=1)
    test: int = Field(360, ge=3)  # besides the cue pairs
    test_pairs: int = Field(90, ge=0)  # cue pairs: same words, same voice, one label apart
    reading: int = Field(1500, ge=0)  # user sentences in the reply voice, to train synthesis
    augmentation: AugmentationConfig | None = AugmentationConfig()  # null: none

    @field_validator("sets", mode="before")
    @classmethod
    def _new_names(cls, names: Any) -> Any:
        return [_OLD_SETS.get(name, name) for name in names] if isinstance(names, list | tuple) else names


def build(recipe: Path | str, overrides: Sequence[str] = ()) -> Path:
    """Build the corpus of a YAML recipe (a `BuildConfig`) under a progress bar; returns its folder."""
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    config = load_config(BuildConfig, recipe, overrides)
    columns = (TextColumn("{task.description:>12}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Bars(*columns) as bars:
        names = (name for name in config.sets if name not in _WITHOUT_AUDIO)
        tasks = {str(name): bars.add_task(name, total=None) for name in names}
        return build_corpus(
            config, lambda name, done, total: bars.update(tasks[name], completed=done, total=total)
        )


def build_corpus(config: BuildConfig, progress: Progress | None = None) -> Path:
    """Build or complete a corpus; returns its folder. ValueError for a folder that has another seed."""
    config.folder.mkdir(parents=True, exist_ok=True)
    _check_or_save(config)
    _rename_old_sets(config.folder)
    for name in config.sets:
        folder = config.folder / name
        if name == "text":
            _write_text(config, folder)
        elif name != "real":
            target = AudioSet(folder, config.audio, config.data_pack)
            report = partial(progress, name) if progress else _no_progress
            build_set(target, _items(config, name), config.workers, report)
        elif config.data_pack is not None:
            write_recordings_manifest(config.data_pack, folder / "manifest.jsonl")
    return config.folder


def _write_text(config: BuildConfig, folder: Path) -> None:
    """Dialogues without audio, other than those spoken: plain, paraphrased and shuffled; random words."""
    rng = random.Random(config.seed)
    words = known_words(config.data_pack)
    augmentation = config.augmentation or NO_AUGMENTATION
    train = [
        paraphrase(dialogue, words, rng) if rng.random() < augmentation.paraphrased_share else dialogue
        for dialogue in sample_dialogues("train", config.text, config.seed + 1)
    ]
    rows = [{**asdict(dialogue), "split": "train"} for dialogue in train]
    rows += [
        random_words_row(f"jumble-{index:06d}", words, rng) | {"split": "train"}
        for index in range(augmentation.random_words)
    ]
    write_jsonl(folder / "manifest.jsonl", rows)
    if augmentation.shuffled:
        dialogues = sample_dialogues("train", augmentation.shuffled, config.seed + 2)
        shuffled = (shuffle_words(one, rng) for one in dialogues)
        write_jsonl(folder / "shuffled.jsonl", ({**asdict(one), "split": "train"} for one in shuffled))
    dev = sample_dialogues("dev", config.dev, config.seed + 1)
    write_jsonl(folder / "dev.jsonl", ({**asdict(dialogue), "split": "dev"} for dialogue in dev))


def build_held_out(
    folder: Path | str, seed: int = 1, workers: int = 1, progress: Callable[[int, int], object] | None = None
) -> Path:
    """The held-out questions alone, without recordings: `folder/manifest.jsonl`, which is returned."""
    config = BuildConfig(folder=Path(folder), seed=seed, workers=workers, sets=("test",))
    made = build_corpus(config, (lambda _, done, total: progress(done, total)) if progress else None)
    rows = read_jsonl(made / "test" / "manifest.jsonl")
    for row in rows:
        del row["reply_audio"]  # the answers have no audio
        row["audio"] = f"test/{row['audio']}"
    manifest = config.folder / "manifest.jsonl"
    write_jsonl(manifest, rows)
    return manifest


def _items(config: BuildConfig, name: SetName) -> Sequence[SpokenQuestion | ReadingText]:
    if name == "answers":
        return _readings(config)
    if name == "test":
        return [*_test_questions(config), *_test_pairs(config)]
    split = _SPLITS.get(name, name)
    return [
        SpokenQuestion(one, split, speaker_key=one.key, seed=config.seed) for one in _dialogues(config, name)
    ]


def _dialogues(config: BuildConfig, name: SetName) -> Iterator[Dialogue]:
    augmentation = config.augmentation or NO_AUGMENTATION
    if name == "paraphrased":
        words = known_words(config.data_pack)
        return paraphrased_dialogues(augmentation.spoken_paraphrases, config.seed, words)
    if name == "random_words":
        words = known_words(config.data_pack)
        return random_word_dialogues(augmentation.spoken_random_words, config.seed, words)
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
    sentences = [dialogue.text for dialogue in sample_dialogues("train", config.reading, config.seed)]
    prompts = prompt_texts(config.data_pack) if config.data_pack and config.reading else []
    for kind, texts in (("user", sentences), ("prompt", prompts)):
        for text in texts:
            if text not in seen:
                seen.add(text)
                key = f"{kind}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
                readings.append(ReadingText(key, text, _reading_split(text)))
    return readings


def _reading_split(text: str) -> str:
    return "dev" if hashlib.sha256(text.encode()).digest()[0] % DEV_ONE_IN == 0 else "train"


def _check_or_save(config: BuildConfig) -> None:
    """Store the configuration, or compare it with the one that the folder was begun with."""
    path = config.folder / "build.yaml"
    if path.exists():
        old = load_config(BuildConfig, path)
        for name in ("seed", "audio"):
            if getattr(old, name) != getattr(config, name):
                raise ValueError(
                    f"{path}, key {name}: expected {getattr(old, name)!r}, as this corpus was begun, "
                    f"found {getattr(config, name)!r}; choose another folder or delete this one"
                )
    save_config(config, path)


def _rename_old_sets(folder: Path) -> None:
    """Sets of a corpus that was begun with their old names."""
    for old, new in (*_OLD_SETS.items(), ("text/scattered.jsonl", "text/shuffled.jsonl")):
        if (folder / old).exists() and not (folder / new).exists():
            (folder / old).rename(folder / new)


def _no_progress(done: int, total: int) -> None:
    pass


if __name__ == "__main__":
    run_replacement("echat.corpus.build")
