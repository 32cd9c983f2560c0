"""From the end of a question to the first sample of the answer, by stage.

    python -m benchmarks.inference.first_audio --size tiny
    python -m benchmarks.inference.first_audio --size 0.5b --threads 2 --precision bf16

Both paths run the same weights and write the same ids (forced: a text, then speech) in the same process:

whole     all is read, written, then synthesised in one go by plain modules; the way of the published code
streamed  the system prompt is read ahead, and sound is made piece by piece while ids are written

With `--precision` the streamed path computes with packed weights, and so does a second whole one.
`cpu` are the seconds that the process computed until then: on a busy machine they say more than the clock.
The answers of the streamed path come in several lengths: the first sound must not wait for the last id.
"""

import argparse
import platform
import time

import torch
from benchmarks.measuring import RESULTS, engine_settings, write_numbers
from benchmarks.shapes import engine_of

from echat.dialogue.tasks import get_task
from echat.dialogue.turns import ask
from echat.infer import events
from echat.infer.decoding import ForcedDecoding
from echat.infer.engine import Engine
from echat.infer.generation import generate, prefill_sequence
from echat.infer.reply_stream import ReplyRequest, StageTimer, emit

STAGES = ("listen", "read", "write", "speak", "synthesise")
Times = dict[str, float]


def forced_ids(engine: Engine, n_text: int, n_speech: int) -> list[int]:
    """A text with its end, and speech between its boundaries."""
    vocabulary, chance = engine.vocabulary, torch.Generator().manual_seed(1)
    text = torch.randint(300, 2000, (n_text,), generator=chance).tolist()
    speech = torch.randint(vocabulary.codec_size, (n_speech,), generator=chance).tolist()
    boundary = vocabulary.speech_boundary
    return [*text, vocabulary.text_end, boundary, *speech, boundary]


def first_audio(engine: Engine, seconds: float, n_text: int, n_speech: int, stream: bool) -> Times:
    """Seconds of each stage up to the first sample."""
    sound = 0.1 * torch.randn(int(16000 * seconds), generator=torch.Generator().manual_seed(0))
    request = ReplyRequest(ask(audio=sound), get_task("s2s"), seed=0, stream=stream)
    shared = [engine.prefill((), "s2s")] if stream else []
    timer, computed = StageTimer(), time.process_time()
    (sequence,) = engine.new_sequences([request], shared)
    sequence.state = ForcedDecoding(sequence.state.rules, forced_ids=forced_ids(engine, n_text, n_speech))
    timer.lap("listen")
    prefill_sequence(engine.model, sequence)
    timer.lap("read")
    for event in emit(engine, request, sequence, generate(engine.model, sequence), timer):
        if isinstance(event, events.Audio):
            return {**timer.total(), "cpu": time.process_time() - computed}  # to leave the loop is to cancel
    raise AssertionError("no sound came")


def measure(engine: Engine, args: argparse.Namespace) -> dict[str, Times]:
    """The best of the repetitions (others were disturbed), paths by turns; the first round warms up."""
    fast = engine.optimized(args.precision) if args.precision else engine
    paths = {"whole": (engine, args.speech, False), "streamed": (fast, args.speech, True)}
    paths |= {f"streamed, {n} ids": (fast, n, True) for n in (2 * args.speech, 4 * args.speech)}
    if args.precision:
        paths["whole, packed"] = (fast, args.speech, False)
    rounds: dict[str, list[Times]] = {name: [] for name in paths}
    for number in range(args.repeat + 1):
        for name, (using, n_speech, stream) in paths.items():
            times = first_audio(using, args.seconds, args.text, n_speech, stream)
            if number or not args.repeat:
                rounds[name].append(times)
    best = {name: min(times, key=lambda t: t["total"]) for name, times in rounds.items()}
    columns = (*STAGES, "total", "cpu")
    return {name: {column: t.get(column, 0.0) for column in columns} for name, t in best.items()}


def show(found: dict[str, Times]) -> None:
    """A row per path, a column per stage, and the ratios to the whole-utterance path."""
    headings = (*STAGES, "first audio", "cpu")
    print(f"{'seconds':<20}" + "".join(f"{heading:>12}" for heading in headings) + "   ratios of both")
    for name, times in found.items():
        ratios = "".join(f"{times[kind] / found['whole'][kind]:8.3f}" for kind in ("total", "cpu"))
        print(f"{name:<20}" + "".join(f"{seconds:12.3f}" for seconds in times.values()) + ratios)


def main() -> None:
    parser = engine_settings(__doc__)
    parser.add_argument("--seconds", type=float, default=5.0, help="of the question")
    parser.add_argument("--text", type=int, default=40, help="text ids of the answer")
    parser.add_argument("--speech", type=int, default=150, help="speech ids of the answer")
    parser.add_argument("--precision", choices=("fp32", "bf16", "int8", "int4"), help="of packed weights")
    parser.add_argument("--repeat", type=int, default=3, help="0: once, without warming up")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    engine = engine_of(args.size, getattr(torch, args.dtype), args.device)
    found = measure(engine, args)
    show(found)
    path = args.json or RESULTS / f"first_audio-{args.size}-{args.device}.json"
    settings = {name: str(value) for name, value in vars(args).items() if name != "json"}
    about = {"torch": torch.__version__, "processor": platform.processor() or platform.machine(), **settings}
    write_numbers(path, {"about": about, "seconds": found})


if __name__ == "__main__":
    main()
