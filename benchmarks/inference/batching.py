"""Ids per second with 1, 2, 4 ... replies side by side, and how soon a cancelled reply stops.

    python -m benchmarks.inference.batching --size tiny
    python -m benchmarks.inference.batching --size 0.5b --rows 1 8

Every reply answers a question of its own length with forced speech ids, so that all rows stay to the end;
prompts are read before the clock starts.
"""

import threading
import time

import torch
from benchmarks.measuring import RESULTS, engine_settings, write_numbers
from benchmarks.shapes import engine_of

from echat.dialogue.tasks import get_task
from echat.dialogue.turns import ask
from echat.infer.continuous_batching import ContinuousBatch
from echat.infer.decoding import ForcedDecoding
from echat.infer.engine import Engine
from echat.infer.reply_stream import ReplyRequest


def ids_per_second(engine: Engine, rows: int, n_ids: int) -> float:
    """Speech ids of all rows in one second."""
    boundary = engine.vocabulary.speech_boundary
    batch = ContinuousBatch(engine.model, rows)
    for row in range(rows):
        (sequence,) = engine.new_sequences(
            [ReplyRequest(ask(text="how are you " * (1 + row % 4)), get_task("tts"))]
        )
        chance = torch.Generator().manual_seed(row)
        speech = torch.randint(boundary, (n_ids,), generator=chance).tolist()
        sequence.state = ForcedDecoding(sequence.state.rules, forced_ids=[*speech, boundary])
        batch.add(sequence)
    while batch.waiting:
        batch.step()
    start, before = time.perf_counter(), sum(len(sequence.state.ids) for sequence in batch.sequences)
    sequences = list(batch.sequences)
    while len(batch.sequences) == rows:
        batch.step()
    written = sum(len(sequence.state.ids) for sequence in sequences) - before
    return written / (time.perf_counter() - start)


def cancel_seconds(engine: Engine) -> list[float]:
    """From cancelling, at moments spread over a reply, to its end."""
    found = []
    sound = 0.1 * torch.randn(80000, generator=torch.Generator().manual_seed(0))
    start = time.perf_counter()
    engine.run(ask(audio=sound), "s2s", seed=0, speak=False)
    whole = time.perf_counter() - start
    for part in range(1, 10):
        cancel = threading.Event()
        asked: list[float] = []
        timer = threading.Timer(whole * part / 10, _stop, (cancel, asked))
        timer.start()
        reply = engine.run(ask(audio=sound), "s2s", seed=0, speak=False, cancel=cancel)
        if reply.finish_reason == "cancelled":
            found.append(time.perf_counter() - asked[0])
        timer.cancel()
    return sorted(found)


def _stop(cancel: threading.Event, asked: list[float]) -> None:
    asked.append(time.perf_counter())
    cancel.set()


def main() -> None:
    parser = engine_settings(__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--ids", type=int, default=40, help="per reply")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    engine = engine_of(args.size, getattr(torch, args.dtype), args.device, speaks=False)
    ids_per_second(engine, 1, 5)
    found = {rows: ids_per_second(engine, rows, args.ids) for rows in args.rows}
    print(f"{'rows':>5}{'ids / s':>10}{'ratio':>8}")
    for rows, speed in found.items():
        print(f"{rows:5}{speed:10.1f}{speed / found[args.rows[0]]:8.2f}")
    cancel = cancel_seconds(engine)
    print("ms from cancelling to the end:", " ".join(f"{1000 * seconds:.0f}" for seconds in cancel))
    path = args.json or RESULTS / f"batch-{args.size}-{args.device}.json"
    about = {name: str(value) for name, value in vars(args).items() if name != "json"}
    numbers = {"about": about, "ids_per_second": found, "cancel_seconds": cancel}
    write_numbers(path, numbers)


if __name__ == "__main__":
    main()
