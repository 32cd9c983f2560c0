"""Peak memory of loading a model, packing it and replying, one process for each precision.

    python -m benchmarks.inference.memory
    python -m benchmarks.inference.memory --model /path/to/model/folder --ids 20

`peak` is the largest resident size; `own` is what is left of it at the end without the pages of memory-mapped
files, which the system may take back at any time.
"""

import argparse
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from benchmarks.measuring import RESULTS, write_numbers

PRECISIONS = ("plain fp32", "plain bf16", "fp32", "bf16", "int8", "int4")
STATUS = Path("/proc/self/status")
Megabytes = dict[str, float]


def resident() -> Megabytes:
    """Of this process; Linux only."""
    lines = [line.split() for line in STATUS.read_text(encoding="ascii").splitlines()]
    found = {line[0].rstrip(":"): int(line[1]) / 1000 for line in lines if line[-1] == "kB"}
    return {"peak": found["VmHWM"], "own": found["RssAnon"]}


def load_and_reply(args: argparse.Namespace) -> dict[str, Megabytes]:
    """In this process: figures after importing, loading and replying."""
    import torch

    from echat.dialogue.tasks import get_task
    from echat.dialogue.turns import Conversation, UserTurn
    from echat.infer.loading import load
    from echat.model.optimized import optimize

    torch.set_num_threads(args.threads)
    found = {"imported": resident()}
    precision = args.child
    dtype = torch.float32 if precision.endswith("fp32") else torch.bfloat16
    engine = load(args.model, dtype=dtype)
    if not precision.startswith("plain"):
        engine = replace(engine, model=optimize(engine.model, precision, consume=True))
    found["loaded"] = resident()
    sound = 0.1 * torch.randn(int(16000 * args.seconds), generator=torch.Generator().manual_seed(0))
    decoding = replace(get_task("s2s").decoding_for(engine.profile), max_new_ids=args.ids)
    engine.run(Conversation([UserTurn(audio=sound)]), "s2s", seed=0, decoding=decoding)
    found["replied"] = resident()
    return found


def measure(args: argparse.Namespace) -> dict[str, dict[str, Megabytes]]:
    """Each precision in a process of its own."""
    found = {}
    for precision in args.precisions:
        command = [sys.executable, "-m", __spec__.name, "--child", precision, "--model", args.model]
        command += ["--ids", str(args.ids), "--seconds", str(args.seconds), "--threads", str(args.threads)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        found[precision] = json.loads(done.stdout.splitlines()[-1])
    return found


def show(found: dict[str, dict[str, Megabytes]]) -> None:
    """A row per precision; the ratio is of the peaks."""
    print(f"{'MB':<12}{'loaded peak':>14}{'replied peak':>14}{'own':>10}{'ratio':>8}")
    first = next(iter(found.values()))["replied"]["peak"]
    for precision, stages in found.items():
        peak = stages["replied"]["peak"]
        print(
            f"{precision:<12}{stages['loaded']['peak']:14.0f}{peak:14.0f}{stages['replied']['own']:10.0f}"
            f"{peak / first:8.2f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="echat-tiny", help="built-in name, model folder or released .pt")
    parser.add_argument("--precisions", nargs="+", default=PRECISIONS, choices=PRECISIONS)
    parser.add_argument("--ids", type=int, default=20, help="of the reply, at most")
    parser.add_argument("--seconds", type=float, default=5.0, help="of the question")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="where the numbers go")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(load_and_reply(args)))
        return
    found = measure(args)
    show(found)
    path = args.json or RESULTS / "memory.json"
    write_numbers(path, {"model": args.model, "megabytes": found})


if __name__ == "__main__":
    main()
