"""Samples per second from tars to batches, memory, where time goes, and what a large corpus costs to open.

    python -m benchmarks.data.loading --mb 1000 --clips corpus/manifest.jsonl
    python -m benchmarks.data.loading --mb 40 --start 10 100          # a quick look
    python -m benchmarks.data.loading --mb 40 --cpu-clock             # on a machine that does other work

Shards in the published layout are written once (`--folder` keeps them): a quarter each of transcribing,
speech to speech with a thought, reading aloud and text to text. The published way
(`data/published_loading.py`) and ours
sample masks and substitutions alike. A row is `way:workers`, 0 for none; each runs in a process of its
own, the files in the page cache.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from benchmarks.data.published_loading import PublishedBatches
from benchmarks.data.shards import write_shards
from benchmarks.measuring import RESULTS, write_numbers
from torch.utils.data import DataLoader

from echat.audio.augmentation import AugmentConfig
from echat.data import audio_loading as sounds
from echat.data import examples
from echat.data.audio_loading import AudioLoader
from echat.data.batching import PooledBatches
from echat.data.collation import collate_dialogues
from echat.data.examples import CachedTokenizer, DialogueBuilder
from echat.data.sample import AudioRef
from echat.data.sources import SourceConfig, mixture
from echat.dialogue.vocabulary import Vocabulary
from echat.model.speech_encoder import EncoderConfig
from echat.model.text_tokenizer import TextTokenizer

TOKENIZER = Path(examples.__file__).parents[1] / "models" / "echat-tiny" / "tokenizer"
MASKS = AugmentConfig(time_masks=2, max_time=50, mel_masks=2, max_mels=10, substitutions=3)
PROMPTS = {"<TRANSCRIBE>": ["Transcribe the following audio."]}
BUDGET = 3700  # positions per batch, as published


def ours(tars: Path, workers: int) -> PooledBatches:
    """One epoch over the shards."""
    tokenizer = TextTokenizer.from_folder(TOKENIZER)
    vocabulary = Vocabulary.from_tokenizer(tokenizer, codec_size=4096)
    build = DialogueBuilder(
        CachedTokenizer(tokenizer), vocabulary, AudioLoader(cache_mb=0), EncoderConfig(), augment=MASKS
    )
    source = SourceConfig(path=str(tars), format="shard")
    return PooledBatches(
        mixture([source], 0, epochs=1), build, collate_dialogues, BUDGET, pool=256, workers=workers
    )


def published(tars: Path, workers: int) -> Iterable[dict[str, Any]]:
    """One pass over the shards."""
    batches = PublishedBatches(tars.read_text().split(), str(TOKENIZER / "tokenizer.json"), PROMPTS)
    return DataLoader(batches, batch_size=None, num_workers=workers) if workers else batches


def run_row(row: str, tars: Path) -> dict[str, float]:
    """One pass: samples, seconds on the wall and of processors, peak memory here and in a worker."""
    way, _, workers = row.partition(":")
    source: Any = (published if way == "published" else ours)(tars, int(workers))
    began, cpu, samples, padding, count = time.perf_counter(), _processor(), 0, 0.0, 0
    for batch in source:
        samples += len(batch["keys"] if way == "published" else batch.keys)
        padding, count = padding + (0.0 if way == "published" else batch.padding), count + 1
    wall = time.perf_counter() - began
    left_out = source.close() if way == "ours" else ""  # children count from here on
    own, children = (_peak(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    found = {"samples": samples, "wall": wall, "processor": _processor() - cpu, "peak_mb": own}
    if left_out:
        print(left_out, file=sys.stderr)
    return found | {"worker_peak_mb": children if int(workers or 0) else 0.0, "padding": padding / count}


def _processor() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def _peak(who: int) -> float:
    return resource.getrusage(who).ru_maxrss / 1024


def run_start(tars: Path) -> dict[str, float]:
    """Seconds to the first batch and the memory that took, the shards indexed already."""
    before, began = _now_mb(), time.process_time()
    source = ours(tars, 0)
    opened = time.process_time() - began
    source.next()
    return {
        "open_seconds": opened,
        "first_batch_seconds": time.process_time() - began,
        "mb": _now_mb() - before,
    }


def _now_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


def run_profile(tars: Path) -> dict[str, float]:
    """Share of processor time by part, each without the parts inside it."""
    clock = Parts()
    clock.watch(AudioRef, "read_bytes", "read sound")
    clock.watch(sounds, "read", "decode")
    clock.watch(sounds, "log_mel", "log-mel")
    clock.watch(sounds, "augment_mel", "masks")
    clock.watch(examples, "render", "render")
    source = ours(tars, 0)
    components, read, build = source._stream.components, "read record", source._workers._function.build
    clock.watch(type(components[0]), "item_at", read)
    source._workers._function = type(source._workers._function)(
        components, clock.timed(build, "build the rest")
    )
    source._collate = clock.timed(source._collate, "collate")
    began = time.process_time()
    for _ in source:
        pass
    whole = time.process_time() - began
    parts = {name: seconds / whole for name, seconds in clock.seconds.items()}
    return parts | {"all the rest": 1.0 - sum(parts.values())}


class Parts:
    """Processor seconds of functions, those of watched functions inside taken off."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._inside = [0.0]

    def timed(self, function: Callable[..., Any], name: str) -> Callable[..., Any]:
        def watched(*args: Any, **kwargs: Any) -> Any:
            self._inside.append(0.0)
            began = time.process_time()
            try:
                return function(*args, **kwargs)
            finally:
                spent = time.process_time() - began
                self.seconds[name] += spent - self._inside.pop()
                self._inside[-1] += spent

        return watched

    def watch(self, owner: Any, attribute: str, name: str) -> None:
        setattr(owner, attribute, self.timed(getattr(owner, attribute), name))


def alone(kind: str, what: str, tars: Path) -> dict[str, float]:
    """A measurement in a process of its own."""
    command = [sys.executable, "-m", __spec__.name, "--only", kind, what, str(tars)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def compare(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """The rows of the table, and the profile."""
    tars = folder / "shards_list.txt"
    if not tars.is_file():
        write_shards(folder, args.mb, None, args.per_shard, args.clips, args.seconds, args.bare)
    alone("start", "", tars)  # writes the indexes, and brings the files into the page cache
    clock = "processor" if args.cpu_clock else "wall"
    names = [f"{way}:{workers}" for workers in args.workers for way in ("published", "ours")]
    found = {row: alone("row", row, tars) for row in names}
    print(
        f"{'row':<12}{'samples':>9}{'samples/s':>11}{'ratio':>8}{'peak MB':>9}{'worker MB':>11}{'padding':>9}"
    )
    for row, numbers in found.items():
        speed = numbers["samples"] / numbers[clock]
        plain = found[f"published:{row.partition(':')[2]}"]
        numbers["ratio"] = speed / (plain["samples"] / plain[clock])
        memory = f"{numbers['peak_mb']:9.0f}{numbers['worker_peak_mb']:11.0f}"
        print(
            f"{row:<12}{numbers['samples']:9}{speed:11.1f}{numbers['ratio']:8.2f}{memory}{numbers['padding']:9.1%}"
        )
    profile = alone("profile", "", tars)
    print("  ".join(f"{name} {share:.0%}" for name, share in sorted(profile.items(), key=lambda p: -p[1])))
    return {"rows": found, "profile": profile}


def starts(folder: Path, counts: list[int]) -> dict[int, dict[str, float]]:
    """What it costs to begin with ever more shards, of forty short records each, indexed before."""
    found = {}
    if counts:
        print(f"{'shards':>7}{'open s':>9}{'first batch s':>15}{'memory MB':>11}")
    for count in counts:
        place = folder / f"{count}-shards"
        if not (place / "shards_list.txt").is_file():
            write_shards(place, 0.0, count, 40, [], 0.4)
        alone("start", "", place / "shards_list.txt")
        numbers = found[count] = alone("start", "", place / "shards_list.txt")
        opened, first = numbers["open_seconds"], numbers["first_batch_seconds"]
        print(f"{count:7}{opened:9.3f}{first:15.3f}{numbers['mb']:11.1f}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--mb", type=float, default=1000.0, help="size of all shards")
    parser.add_argument("--seconds", type=float, default=5.0, help="mean length of made-up sound")
    parser.add_argument("--per-shard", type=int, default=1000, help="records")
    parser.add_argument("--clips", nargs="*", default=[], help="manifests of real clips, half of the sound")
    parser.add_argument("--bare", action="store_true", help="no sound in records that are only read")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--start", type=int, nargs="*", default=[10, 100, 1000], help="counts of shards to open"
    )
    parser.add_argument("--folder", type=Path, help="where shards are kept; default: nowhere")
    parser.add_argument("--cpu-clock", action="store_true", help="count seconds of the processors")
    parser.add_argument("--json", type=Path, help="where the numbers go")
    parser.add_argument("--only", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.only:
        kind, what, tars = args.only
        measure = {"start": run_start, "profile": run_profile, "row": lambda path: run_row(what, path)}[kind]
        print(json.dumps(measure(Path(tars))))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        numbers = compare(folder / "all", args) | {"start": starts(folder, args.start)}
    about = {name: str(value) for name, value in vars(args).items() if name not in ("json", "only", "folder")}
    write_numbers(args.json or RESULTS / "data.json", {"about": about, **numbers})


if __name__ == "__main__":
    main()
