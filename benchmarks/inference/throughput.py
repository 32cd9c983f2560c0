"""Encoder, prefill and decoding: ours in each precision against the published way, same weights and threads.

    python -m benchmarks.inference.throughput --shape tiny
    python -m benchmarks.inference.throughput --shape 0.5b --threads 2
    python -m benchmarks.inference.throughput --shape 3b --threads 2

For each precision the published way and ours take turns; medians count. `tiny` is the shipped model, whose
agreement with float32 is shown too; the others have the released encoder and random weights: speed does not
depend on what they say.
"""

import argparse
import gc
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from benchmarks.inference.published_model import Published, encode, encoder_in_float32
from benchmarks.measuring import RESULTS, write_numbers
from benchmarks.shapes import LLM_SHAPES
from torch import Tensor

from echat.dialogue.turns import Conversation, UserTurn
from echat.infer.loading import load
from echat.model.optimized import optimize
from echat.model.speech_llm import SpeechLLM, SpeechLLMConfig
from echat.verify.agreement import greedy_agreement

PRECISIONS = ("bf16", "int8", "int4")
BATCH = 8
Figures = dict[str, float]


class Ours:
    """What the engine does: a cache of the size needed, logits at one position, one head."""

    def __init__(self, model: SpeechLLM) -> None:
        self.model = model

    def encode(self, mel: Tensor) -> Tensor:
        """mel (1, T, n_mels) -> frames (1, D, dim)."""
        lens = torch.tensor([mel.shape[1]])
        return self.model.encode(mel, lens)[0]

    def prefill(self, embeds: Tensor) -> Tensor:
        """embeds (B, L, dim) -> last hidden states (B, dim)."""
        cache = self.model.llm.new_cache(len(embeds), embeds.shape[1] + 256)
        hidden, self.cache = self.model.llm.extend(embeds, cache)
        return hidden[:, -1]

    def step(self, embeds: Tensor) -> Tensor:
        """embeds (B, 1, dim) -> hidden states (B, dim)."""
        hidden, self.cache = self.model.llm.extend(embeds, self.cache)
        return hidden[:, -1]

    def logits(self, hidden: Tensor, speech: bool) -> Tensor:
        """Scores (B, classes) of one head, float32."""
        return (self.model.speech_logits if speech else self.model.text_logits)(hidden).float()

    def embed(self, ids: Tensor, speech: bool) -> Tensor:
        """ids (B,) -> (B, 1, dim)."""
        table = self.model.speech_embedding if speech else self.model.llm.text_embedding
        return table(ids)[:, None]


Contestant = Ours | Published


def random_model(config: SpeechLLMConfig) -> SpeechLLM:
    """bf16 weights made where they stay; one stretch of chance is repeated, for chance is slow."""
    with torch.device("meta"):
        model = SpeechLLM(config)
    model = model.to(torch.bfloat16).to_empty(device="cpu").eval().requires_grad_(False)
    stretch = (0.02 * torch.randn(2**22, generator=torch.Generator().manual_seed(0))).bfloat16()
    for name, weight in model.named_parameters():
        if weight.ndim == 1:
            weight.fill_(0.0 if name.endswith("bias") else 1.0)
            continue
        for part in weight.view(-1).split(len(stretch)):
            part.copy_(stretch[: len(part)])
    model.reset_tables()
    return model.to(torch.bfloat16)  # the tables too, as published


def model_of(args: argparse.Namespace) -> SpeechLLM:
    """The model of a shape; `layers` and `blocks` cut it for a quick look at one layer."""
    if args.shape == "tiny":
        return load("echat-tiny").model.to(torch.bfloat16)
    config = SpeechLLMConfig(llm=LLM_SHAPES[args.shape])
    if args.layers:
        config = config.model_copy(update={"llm": config.llm.model_copy(update={"layers": args.layers})})
    if args.blocks:
        encoder = config.encoder.model_copy(update={"blocks": args.blocks})
        config = config.model_copy(update={"encoder": encoder})
    return random_model(config)


def stream_bytes_per_second(n_bytes: int) -> float:
    """The highest bandwidth of reading, or reading and writing, one large tensor."""
    source = torch.ones(n_bytes // 4)
    target = torch.empty_like(source)
    read = min(seconds(source.sum) for _ in range(4))
    copied = min(seconds(lambda: target.copy_(source)) for _ in range(4))
    return max(n_bytes / read, 2 * n_bytes / copied)


class Watch:
    """Which seconds count: those of the wall, or with `--cpu-clock` those of the processor."""

    clock = time.perf_counter


def seconds(work: Callable[[], object]) -> float:
    """Seconds of one call."""
    start = Watch.clock()
    work()
    return Watch.clock() - start


def write_ids(who: Contestant, hidden: Tensor, n: int, speech: bool) -> None:
    """Write `n` ids greedily after the state (B, dim); the ids come to the host, as decoding rules need."""
    for _ in range(n):
        ids = who.logits(hidden, speech).argmax(dim=-1)
        ids.tolist()
        hidden = who.step(who.embed(ids, speech))


def one_round(who: Contestant, mel: Tensor, embeds: Tensor, n_ids: int) -> Figures:
    """Seconds of encoder and prefill, ids per second with either head."""
    found = {"encode": seconds(lambda: who.encode(mel))}
    hidden: list[Tensor] = []
    found["prefill"] = seconds(lambda: hidden.append(who.prefill(embeds)))
    for name, speech in (("text", False), ("speech", True)):
        found[name] = n_ids / seconds(lambda speech=speech: write_ids(who, hidden[0], n_ids, speech))
    return found


def batch_round(ours: Ours, embeds: Tensor, n_ids: int) -> float:
    """Speech ids per second of `BATCH` replies side by side."""
    hidden = ours.prefill(embeds.expand(BATCH, -1, -1).contiguous())
    return BATCH * n_ids / seconds(lambda: write_ids(ours, hidden, n_ids, True))


@torch.inference_mode()
def measure(model: SpeechLLM, args: argparse.Namespace) -> dict[str, Figures]:
    """A row for the published way and one for each precision."""
    bandwidth = stream_bytes_per_second(2**28 if args.quick else 2**30)
    mel = torch.randn(1, int(100 * args.seconds), model.config.encoder.n_mels)
    embeds = (0.02 * torch.randn(1, args.positions, model.config.llm.dim)).bfloat16()
    published, float_encoder = Published(model), encoder_in_float32(model)
    baseline: list[Figures] = []
    in_float: list[Figures] = []
    rows: dict[str, Figures] = {}
    for precision in args.precisions:
        ours = Ours(optimize(model, precision, int4_group=args.int4_group))
        rounds: list[Figures] = []
        for number in range(args.repeat + 1):
            figures = [one_round(who, mel, embeds, args.ids) for who in (published, ours)]
            encoding = {"encode": seconds(lambda: encode(float_encoder, mel))}
            if number:  # the first round warms up
                for kept, found in zip((baseline, rounds, in_float), (*figures, encoding)):
                    kept.append(found)
        row = medians(rounds)
        row["batch"] = statistics.median(batch_round(ours, embeds, args.ids) for _ in range(args.repeat))
        for name, text in (("text", True), ("speech", False)):
            head = 0 if text else ours.model.speech_head.weight_bytes
            row[f"{name} GB"] = (ours.model.llm.weight_bytes(text) + head) / 1e9
            row[f"{name} share"] = row[f"{name} GB"] * 1e9 * row[name] / bandwidth
        rows[f"ours {precision}"] = row
        del ours
        gc.collect()
    base = {**medians(baseline), "stream GB/s": bandwidth / 1e9}
    return {"published": base, "published fp32": medians(in_float), **rows}


def agreement(args: argparse.Namespace) -> Figures:
    """Share of equal greedy ids of each precision and float32, for the shipped model."""
    engine = load("echat-tiny")
    assert engine.home is not None
    question = Conversation([UserTurn(audio=str(engine.home / "examples" / "question.wav"))])
    texts = ("my dog ran away today", "what a lovely day for a walk in the park", "i passed my exam")
    dialogues = [(question, task) for task in ("s2s", "s2s_think_language", "understand")]
    dialogues += [(Conversation([UserTurn(text=t)]), task) for t in texts for task in ("t2t", "tts")]
    return {
        precision: greedy_agreement(
            engine, optimize(engine.model, precision, int4_group=args.int4_group), dialogues
        )[0]
        for precision in args.precisions
    }


def medians(rounds: list[Figures]) -> Figures:
    return {name: statistics.median(figures[name] for figures in rounds) for name in rounds[0]}


def ratios(found: dict[str, Figures]) -> dict[str, Figures]:
    """How many times as fast as the published way; `batch`: as many ids as one reply of ours."""
    base, result = found["published"], {}
    for name, row in found.items():
        if name.startswith("ours"):
            result[name] = {key: base[key] / row[key] for key in ("encode", "prefill")}
            result[name] |= {key: row[key] / base[key] for key in ("text", "speech")}
            result[name]["batch"] = row["batch"] / row["speech"]
    return result


def show(found: dict[str, Figures]) -> None:
    """Seconds and ids per second, ratio beside each; share of the memory bandwidth that decoding reaches."""
    titles = {"encode": "encode s", "prefill": "prefill s", "text": "text ids/s", "speech": "speech ids/s"}
    print(
        f"{'':<12}" + "".join(f"{t:>20}" for t in (*titles.values(), f"batch {BATCH} ids/s")) + "   bandwidth"
    )
    compared = ratios(found)
    for name, row in found.items():
        line = f"{name:<12}"
        for key in (*titles, "batch"):
            ratio = compared.get(name, {}).get(key)
            line += f"{row[key]:12.3f}" if key in row else f"{'':12}"
            line += f" {ratio:6.2f}x" if ratio else " " * 8
        if "text share" in row:
            line += f"   text {row['text share']:.0%}, speech {row['speech share']:.0%}"
        print(line)
    print(f"stream bandwidth {found['published']['stream GB/s']:.1f} GB/s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--shape", default="tiny", choices=("tiny", *LLM_SHAPES))
    parser.add_argument("--precisions", nargs="+", default=PRECISIONS, choices=("fp32", *PRECISIONS))
    parser.add_argument("--int4-group", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=5.0, help="of the question")
    parser.add_argument("--positions", type=int, default=150, help="of the prompt")
    parser.add_argument("--ids", type=int, default=16, help="written with each head")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="2 rounds of 4 ids")
    parser.add_argument("--layers", type=int, help="decoder layers, to look at a part")
    parser.add_argument("--blocks", type=int, help="encoder blocks, to look at a part")
    parser.add_argument(
        "--cpu-clock", action="store_true", help="processor time, for one thread on a busy machine"
    )
    parser.add_argument("--json", type=Path, help="where the numbers go")
    args = parser.parse_args()
    if args.quick:
        args.repeat, args.ids = 2, 4
    if args.cpu_clock:
        Watch.clock = time.process_time
    torch.set_num_threads(args.threads)
    found = measure(model_of(args), args)
    show(found)
    equal = agreement(args) if args.shape == "tiny" else {}
    for precision, share in equal.items():
        print(f"equal greedy ids, {precision} and fp32: {share:.1%}")
    path = args.json or RESULTS / f"infer-{args.shape}.json"
    settings = {name: str(value) for name, value in vars(args).items() if name != "json"}
    about = {"torch": torch.__version__, "processor": platform.processor() or platform.machine(), **settings}
    write_numbers(path, {"about": about, "figures": found, "ratios": ratios(found), "agreement": equal})


if __name__ == "__main__":
    main()
