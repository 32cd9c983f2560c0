"""The whole path of released weights at full size, each step in a process of its own, with its figures.

    python scripts/full_size_path.py FOLDER [--size full|half|tiny] [--threads 1] [--dtype bf16]

makes a random checkpoint in FOLDER when there is none, converts it, loads the model folder, understands a 5 s
question, answers with 20 ids, and speaks 1 s. Prints a table and writes `figures.json`. Memory is the peak of
the process, mapped file pages included. Full size needs 16 GB of disk and 9 GB of memory.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import full_size_checkpoint as checkpoint
import torch

QUESTION_SECONDS, REPLY_IDS, SPEECH_IDS = 5, 20, 25  # 25 speech ids are 1 s
Figures = dict[str, float]


def peak_gb() -> float:
    """Most memory that this process ever held, GB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024 / 1e9
    raise SystemExit("expected VmHWM in /proc/self/status, found none; this script measures on Linux")


@contextmanager
def clock(figures: Figures, name: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    figures[f"{name} s"] = time.perf_counter() - start


def make(options: argparse.Namespace, figures: Figures) -> None:
    with clock(figures, "make"):
        checkpoint.make(options.folder, options.size)


def convert(options: argparse.Namespace, figures: Figures) -> None:
    from echat.devices import DTYPES
    from echat.release.conversion import convert as run

    home = options.folder
    with clock(figures, "convert"):
        report = run(
            home / checkpoint.WEIGHTS,
            home / checkpoint.LLM,
            model_folder(options),
            home / checkpoint.TAR,
            dtype=DTYPES[options.dtype],
        )
    print(report)


def use(options: argparse.Namespace, figures: Figures) -> None:
    """Load, encode audio, understand, reply, synthesise."""
    import echat
    from echat.dialogue.turns import ask
    from echat.infer.decoding import GenerationState
    from echat.infer.generation import SequenceState, generate
    from echat.infer.prompt_cache import Prompt
    from echat.token2wav.voice import VoicePrompt

    weights = model_folder(options) / "model.safetensors"
    figures["weights GB"] = weights.stat().st_size / 1e9
    with clock(figures, "load"):
        engine = echat.load(model_folder(options))
    figures["load peak GB"] = peak_gb()
    question = ask(
        audio=0.1 * torch.randn(QUESTION_SECONDS * 16_000, generator=torch.Generator().manual_seed(0))
    )
    with clock(figures, "first encode (reads the pages)"):
        engine.embed(engine.render(question, "s2t"))
    with clock(figures, "encode"):
        embeds = engine.embed(engine.render(question, "s2t"))
    decoding = replace(engine.decoding_rules(question, "s2t").decoding, max_new_ids=REPLY_IDS)
    rules = engine.decoding_rules(question, "s2t", decoding)
    figures["prompt positions"] = embeds.shape[1]
    for name in ("first prefill (reads the pages)", "prefill"):
        with clock(figures, name):
            state = GenerationState(rules, torch.Generator().manual_seed(0))
            steps = generate(engine.model, SequenceState(Prompt(embeds), state))
            next(steps)
    with clock(figures, "decode"):
        figures["decoded ids"] = sum(1 for _ in steps)
    figures["decode ids/s"] = figures["decoded ids"] / figures["decode s"]
    assert engine.token2wav is not None
    voice = VoicePrompt(torch.zeros(0, dtype=torch.long), torch.zeros(0, 80), torch.randn(192))
    with clock(figures, "token2wav"):
        waveform = engine.token2wav.synthesize(list(range(SPEECH_IDS)), voice, seed=0)
    assert bool(torch.isfinite(waveform).all())
    figures["speech seconds"] = len(waveform) / engine.token2wav.rate
    with clock(figures, "understand"):
        short = replace(engine.decoding_rules(question, "understand").decoding, max_new_ids=8)
        engine.understand(question.question.audio, decoding=short)
    figures["whole peak GB"] = peak_gb()
    figures["load peak / weights"] = figures["load peak GB"] / figures["weights GB"]
    figures["whole peak / weights"] = figures["whole peak GB"] / figures["weights GB"]


STEPS: dict[str, Callable[[argparse.Namespace, Figures], None]] = {
    "make": make,
    "convert": convert,
    "use": use,
}


def model_folder(options: argparse.Namespace) -> Path:
    return options.folder / f"model-{options.dtype}"


def run_step(name: str, options: argparse.Namespace) -> Figures:
    """One step in a process of its own -> its figures; its other lines go on to our stdout."""
    done = subprocess.run(
        [sys.executable, *sys.argv, "--step", name], check=True, text=True, stdout=subprocess.PIPE
    )
    *lines, last = done.stdout.splitlines()
    print(*lines, sep="\n", flush=True)
    return json.loads(last)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", choices=checkpoint.MODELS, default="full")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dtype", choices=("bf16", "fp16", "fp32"), default="bf16")
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        torch.set_num_threads(options.threads)
        figures: Figures = {}
        STEPS[options.step](options, figures)
        figures[f"{options.step} process peak GB"] = peak_gb()
        print(json.dumps(figures))
        return
    has = {"make": (options.folder / checkpoint.WEIGHTS).exists(), "convert": model_folder(options).exists()}
    figures = {}
    for name in STEPS:
        if not has.get(name):
            figures |= run_step(name, options)
    for name, value in figures.items():
        print(f"{name:<34} {value:10.3f}")
    (options.folder / "figures.json").write_text(json.dumps(figures, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
