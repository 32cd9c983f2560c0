"""Training: ours against the plain way, same weights, same dialogues, same budget of a batch, same threads.

    python -m benchmarks.training.throughput --shape tiny
    python -m benchmarks.training.throughput --shape 0.5b --samples 8 --budget 1000 --threads 1 --cpu-clock
    python -m benchmarks.training.throughput --shape 0.5b --layers 4 --blocks 2   # where it is too much
    python -m benchmarks.training.throughput --shape tiny --processes 1 2         # how ours grows
    python -m benchmarks.training.throughput --shape 3b --device cuda --recompute "*" --budget 16000

Each row runs in a process of its own: forward and backward of every batch, gradients in place, no optimiser
step, which costs both the same. `extra MB` is the peak of memory above weights and gradients: activations and
what is made on the way. On a GPU tokens per second and the share of its arithmetic that the model uses are
shown too. Random weights: speed does not read minds.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from benchmarks.measuring import RESULTS, write_numbers
from benchmarks.shapes import LLM_SHAPES
from benchmarks.training.dialogues import Dialogue, example_of, sample_dialogues
from benchmarks.training.published_training import PublishedBatch, published_batches, published_loss

from echat.data.batching import cut_batches
from echat.data.collation import collate_dialogues
from echat.dialogue.vocabulary import speech_classes
from echat.model.adapter import AdapterConfig
from echat.model.llm import LLMConfig
from echat.model.speech_encoder import EncoderConfig
from echat.model.speech_llm import SpeechLLM, SpeechLLMConfig
from echat.train.distributed import Ranks, init_distributed, select_device, shutdown_distributed
from echat.train.objective import Loss
from echat.train.objectives.dialogue_loss import DialogueLoss
from echat.train.parallel import ParallelModel
from echat.train.recipe import BudgetConfig, Recipe
from echat.train.weights.parameters import set_trainable

SHAPES = {
    "tiny": SpeechLLMConfig(  # that of the shipped model
        encoder=EncoderConfig(dim=192, blocks=4, heads=4, ffn=576, max_frames=3000, conv_kernel=15),
        adapter=AdapterConfig(dim=192, blocks=2, heads=4, ffn=512, max_frames=750),
        llm=LLMConfig(vocab_size=800, dim=256, layers=6, heads=4, kv_heads=2, mlp=704),
    ),
    "0.5b": SpeechLLMConfig(  # Whisper small and Qwen2.5-0.5B
        encoder=EncoderConfig(dim=768, blocks=12, heads=12, ffn=3072),
        adapter=AdapterConfig(dim=768, blocks=4, heads=12, ffn=2048),
        llm=LLM_SHAPES["0.5b"],
    ),
    "3b": SpeechLLMConfig(),
}
TRAINABLE = {1: ("encoder.*", "subsampler.*", "adapter.*", "projection.*"), 3: ("*",)}
PEAK_TFLOPS = 989.0  # dense bf16 of an H100 or H200


@dataclass
class StubObjective:
    """As much of an objective as the trainer needs."""

    module: SpeechLLM
    loss: Callable[[Any], Loss]


def shape_of(args: argparse.Namespace) -> SpeechLLMConfig:
    """The shape, cut to `--layers` and `--blocks`; without dropout, so that neither way samples anything."""
    shape = SHAPES[args.shape]
    blocks = {"blocks": args.blocks} if args.blocks else {}
    layers = {"layers": args.layers} if args.layers else {}
    return shape.model_copy(
        update={
            "encoder": shape.encoder.model_copy(update={"dropout": 0.0, **blocks}),
            "adapter": shape.adapter.model_copy(update={"dropout": 0.0}),
            "llm": shape.llm.model_copy(update=layers),
        }
    )


def batches_of(way: str, args: argparse.Namespace, shape: SpeechLLMConfig, ranks: Ranks) -> list[Any]:
    """This process's share of the batches, in the order they come."""
    dialogues = sample_dialogues(args.stage, args.samples)
    sizes = shape.llm.vocab_size, shape.speech_codec_size, shape.encoder.n_mels
    if way == "plain":
        return [PublishedBatch(batch, *sizes) for batch in published_batches(dialogues, args.budget)]
    examples = [example_of(dialogue, *sizes) for dialogue in dialogues]
    batches = [collate_dialogues(b) for b in cut_batches(examples, args.budget, random.Random(0))]
    whole = len(batches) // ranks.world * ranks.world  # processes wait for each other after every batch
    return batches[:whole][ranks.rank :: ranks.world]


def loss_of(way: str, model: SpeechLLM) -> Callable[[Any], Loss]:
    if way != "plain":
        return DialogueLoss(model, model.config.llm.vocab_size)

    def loss(batch: PublishedBatch) -> Loss:
        total, count = published_loss(model, batch)
        return Loss(total, count)

    return loss


def one_row(way: str, args: argparse.Namespace) -> dict[str, float]:
    """In this process: one batch to warm up, then all of them `--repeat` times by the clock."""
    torch.set_num_threads(args.threads)
    device = select_device(args.device)
    ranks = init_distributed(device)
    shape = shape_of(args)
    torch.manual_seed(0)
    model = SpeechLLM(shape)
    set_trainable(model, TRAINABLE[args.stage])
    recompute = tuple(args.recompute) if way == "ours, recomputed" else ()
    recipe = Recipe(
        objective="speech_llm",
        output="-",
        budget=BudgetConfig(steps=1),
        precision=args.precision,
        activation_checkpointing=recompute,
        compile=args.compile and way != "plain",
        parallel=args.parallel,
    )
    parallel_model = ParallelModel(StubObjective(model, loss_of(way, model)), recipe, ranks, device)  # type: ignore[arg-type]
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    batches = batches_of(way, args, shape, ranks)
    parallel_model.forward_backward(batches[0])
    memory = Memory(device)
    clock = time.process_time if args.cpu_clock else time.perf_counter
    took, total, targets = [], 0.0, 0.0
    for _ in range(args.repeat):
        began = clock()
        losses = [parallel_model.forward_backward(batch) for batch in batches]
        if device.type != "cpu":
            torch.accelerator.synchronize()
        took.append(clock() - began)
        total, targets = sum(float(loss.total) for loss in losses), sum(loss.count for loss in losses)
    found = {
        "seconds": sorted(took)[len(took) // 2],
        "samples": sum(len(batch.keys) for batch in batches),
        "extra_mb": memory.extra(),
        "padding": sum(batch.padding for batch in batches) / len(batches),
        "batches": len(batches),
        "loss": total / targets,
    }
    every = ranks.gather(found)
    found["samples"] = sum(one["samples"] for one in every)
    found["seconds"] = max(one["seconds"] for one in every)
    shutdown_distributed(ranks)
    return found


class Memory:
    """The peak above what is there now."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        if device.type == "cpu":
            Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        else:
            torch.accelerator.reset_peak_memory_stats()
        self._before = self._now("VmRSS", "allocated_bytes.all.current")

    def _now(self, line: str, key: str) -> float:
        if self._device.type == "cpu":
            status = Path("/proc/self/status").read_text().splitlines()
            return next(int(row.split()[1]) for row in status if row.startswith(line)) / 1000
        return torch.accelerator.memory_stats()[key] / 1e6

    def extra(self) -> float:
        """Megabytes."""
        return self._now("VmHWM", "allocated_bytes.all.peak") - self._before


def model_flops(shape: SpeechLLMConfig, dialogues: list[Dialogue], stage: int) -> float:
    """Multiplications and additions that the model asks for, without any done twice.

    2 per weight and position forwards, 2 for the gradient of what was read, 2 for that of a weight that
    is trained; forwards, attention takes 4 x width x (half of the positions) per position and layer.
    """
    llm, encoder = shape.llm, shape.encoder
    head_dim = llm.dim // llm.heads
    layer = llm.dim * (2 * llm.dim + 2 * llm.kv_heads * head_dim) + 3 * llm.dim * llm.mlp
    block = 4 * encoder.dim**2 + 2 * encoder.dim * encoder.ffn
    passes = 3 if stage == 3 else 2  # frozen weights of the language model need no gradients
    total = 0.0
    for dialogue in dialogues:
        n, encoder_frames = dialogue.positions, dialogue.mel_frames / 2
        classes = llm.vocab_size + (speech_classes(shape.speech_codec_size) if dialogue.speech else 0)
        read = llm.layers * (2 * layer * n + 2 * llm.dim * n * n) + 2 * llm.dim * classes * dialogue.targets
        total += passes * read
        total += (
            3
            * encoder.blocks
            * (2 * block * encoder_frames + 4 * encoder.dim * encoder_frames * encoder_frames)
        )
    return total


WAYS = ("plain", "ours", "ours, recomputed")


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Each row in a process of its own."""
    found: dict[str, Any] = {}
    for stage in args.stages:
        dialogues = sample_dialogues(stage, args.samples)
        flops = model_flops(shape_of(args), dialogues, stage)
        positions = sum(dialogue.positions for dialogue in dialogues)
        rows = (
            [(way, 1) for way in args.ways]
            if args.processes == [1]
            else [("ours", n) for n in args.processes]
        )
        for way, processes in rows:
            name = way if args.processes == [1] else f"{way}, {processes} processes"
            launcher = [sys.executable]
            if processes > 1:
                launcher += [
                    "-m",
                    "torch.distributed.run",
                    "--standalone",
                    "--nproc-per-node",
                    str(processes),
                ]
            command = [*launcher, "-m", __spec__.name, *sys.argv[1:], "--child", way, "--stage", str(stage)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            row = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))
            row["positions_per_s"] = positions / row["seconds"]
            row["tflops"] = flops / row["seconds"] / 1e12
            found.setdefault(f"stage {stage}", {})[name] = row
            show(f"stage {stage}  {name}", row, next(iter(found[f"stage {stage}"].values())), args)
    return found


def show(name: str, row: dict[str, float], first: dict[str, float], args: argparse.Namespace) -> None:
    """One line; ratios are to the first row of the stage."""
    rate = row["samples"] / row["seconds"]
    faster = rate / (first["samples"] / first["seconds"])
    line = (
        f"{name:<32}{rate:9.3f} samples/s {faster:6.2f} x{row['extra_mb']:10.0f} MB extra "
        f"{row['extra_mb'] / first['extra_mb']:6.2f} x  padding {row['padding']:4.0%}  loss {row['loss']:.3f}"
    )
    if args.device != "cpu":
        share = row["tflops"] / args.peak_tflops
        line += f"  {row['positions_per_s']:.0f} tokens/s  {row['tflops']:.0f} TFLOP/s = {share:.0%}"
    print(line, flush=True)


def settings() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--shape", default="tiny", choices=tuple(SHAPES))
    parser.add_argument("--layers", type=int, help="of the language model; default: all")
    parser.add_argument("--blocks", type=int, help="of the encoder; default: all")
    parser.add_argument("--stages", type=int, nargs="+", default=[1, 3], choices=(1, 3))
    parser.add_argument("--ways", nargs="+", default=WAYS, choices=WAYS)
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--budget", type=int, default=4000, help="positions of a batch")
    parser.add_argument("--precision", default="bf16", choices=("bf16", "fp32"))
    parser.add_argument("--recompute", nargs="+", default=["*"], help="blocks of the third row")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--parallel", default="ddp", choices=("ddp", "fsdp"))
    parser.add_argument("--processes", type=int, nargs="+", default=[1])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--peak-tflops", type=float, default=PEAK_TFLOPS, help="of the device, dense bf16")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--cpu-clock", action="store_true", help="processor time, on a busy machine")
    parser.add_argument("--json", type=Path, help="where the numbers go")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--stage", type=int, help=argparse.SUPPRESS)
    return parser


def main() -> None:
    args = settings().parse_args()
    if args.child:
        print(json.dumps(one_row(args.child, args)), flush=True)
        return
    found = measure(args)
    path = args.json or RESULTS / f"train-{args.shape}.json"
    write_numbers(path, {"settings": {k: str(v) for k, v in vars(args).items()}, "rows": found})


if __name__ == "__main__":
    main()
