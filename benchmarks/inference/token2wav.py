"""Ids to sound: ours in each precision against the published way, whole and in pieces, by part.

    python -m benchmarks.inference.token2wav      # released size (random weights) and the shipped voice
    python -m benchmarks.inference.token2wav --size released --prompts 0 3 --precisions fp32 int8
    python -m benchmarks.inference.token2wav --quick      # a miniature: does the benchmark itself work?

Figures are processor seconds, on one thread unless `--threads` says otherwise. In every round the published
way and ours take turns; medians count. The published way is written out here: plain modules, a mask of ones
and the unconditional half in every step, the voice prompt analysed anew in each call (where its analysers are
at hand: at the released size they are separate downloads, and the time of that is left out), pieces of 50
ids that share 20.

encoder    ids -> condition of the flow        estimator  all Euler steps
vocoder    mel -> sound                        total      their sum, and the analysis of the prompt
first      until the first piece of a stream   stream     all its pieces
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from echat.audio.waveform import read
from echat.devices import processor_name
from echat.token2wav.estimator import EstimatorConfig
from echat.token2wav.flow import FlowConfig
from echat.token2wav.hift.vocoder import F0PredictorConfig, VocoderConfig
from echat.token2wav.optimized.token2wav import optimize
from echat.token2wav.streaming import begin, push
from echat.token2wav.token2wav import Token2Wav, Token2WavConfig
from echat.token2wav.token_encoder import TokenEncoderConfig
from echat.token2wav.voice import VoicePrompt
from echat.verify.reference_streaming import stream_reference

RESULTS = Path(__file__).parents[1] / "results" / "token2wav.json"
PARTS = ("encoder", "estimator", "vocoder", "total", "first", "stream")
Figures = dict[str, float]


# --- who is measured


def random_model(config: Token2WavConfig) -> Token2Wav:
    """Random weights: speed does not depend on what they say."""
    torch.manual_seed(0)
    return Token2Wav(config).eval().requires_grad_(False)


def miniature() -> Token2Wav:
    encoder = TokenEncoderConfig(
        input_size=16, output_size=16, attention_heads=2, linear_units=32, num_blocks=1
    )
    estimator = EstimatorConfig(
        channels=(16, 16), attention_head_dim=8, num_heads=2, n_blocks=1, num_mid_blocks=1
    )
    flow = FlowConfig(input_size=16, steps=2, encoder=encoder, estimator=estimator)
    vocoder = VocoderConfig(base_channels=16, f0_predictor=F0PredictorConfig(cond_channels=16))
    return random_model(Token2WavConfig(flow=flow, vocoder=vocoder))


def shipped() -> Token2Wav:
    return Token2Wav.from_folder(str(files("echat") / "models" / "echat-tiny" / "token2wav")).requires_grad_(
        False
    )


MODELS: dict[str, Callable[[], Token2Wav]] = {
    "released": lambda: random_model(Token2WavConfig()),
    "echat-tiny": shipped,
    "miniature": miniature,
}


class Published:
    """The published way over the plain modules."""

    def __init__(self, model: Token2Wav, analyse: Callable[[], VoicePrompt] | None) -> None:
        self.model, self.analyse = model, analyse

    def voice(self, voice: VoicePrompt) -> VoicePrompt:
        """The voice of this call; the published code analyses the recording every time."""
        return self.analyse() if self.analyse else voice

    def mel(self, mu: Tensor, prompt_mel: Tensor, embedding: Tensor, z: Tensor) -> Tensor:
        flow = self.model.flow
        cond = torch.zeros_like(mu)
        cond[:, :, : prompt_mel.shape[1]] = (prompt_mel.mT - flow.config.mel_mean) / flow.config.mel_scale
        mask, nothing = torch.ones(2, 1, mu.shape[2]), torch.zeros_like(mu)
        spks, x, rate = flow.speaker(embedding), z, flow.config.inference_cfg_rate
        for t, dt in flow.decoder.steps(z):
            guided, free = flow.decoder.estimator(
                torch.cat([x, x]), mask, torch.cat([mu, nothing]), t.expand(2),
                torch.cat([spks, torch.zeros_like(spks)]), torch.cat([cond, nothing]),
            ).chunk(2)  # fmt: skip
            x = x + dt * ((1 + rate) * guided - rate * free)
        return x[:, :, prompt_mel.shape[1] :] * flow.config.mel_scale + flow.config.mel_mean

    def pieces(self, ids: list[int], voice: VoicePrompt) -> Any:
        return stream_reference(self.model, ids, self.voice(voice))


class Ours:
    """A prepared model; the voice was analysed once, long ago."""

    def __init__(self, model: Token2Wav) -> None:
        self.model = model

    def voice(self, voice: VoicePrompt) -> VoicePrompt:
        return voice

    def mel(self, mu: Tensor, prompt_mel: Tensor, embedding: Tensor, z: Tensor) -> Tensor:
        return self.model.flow.mel_from(mu, prompt_mel, embedding, z)

    def pieces(self, ids: list[int], voice: VoicePrompt) -> Any:
        stream = begin(self.model, voice)
        for number in ids:
            sound, stream = push(self.model, stream, [number])
            if len(sound):
                yield sound
        yield push(self.model, stream, [], final=True)[0]


# --- measuring


def seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    """Processor seconds of one call, and what it gave."""
    start = time.process_time()
    result = work()
    return time.process_time() - start, result


@torch.inference_mode()
def whole(who: Published | Ours, ids: list[int], voice: VoicePrompt) -> tuple[Figures, Tensor]:
    """Seconds by part, and the mel."""
    model, found = who.model, {}
    found["voice"], voice = seconds(lambda: who.voice(voice))
    prompt_ids, prompt_mel, embedding = model.voice_tensors(voice)
    given = model.check_ids(ids)[None]
    found["encoder"], mu = seconds(lambda: model.flow.regulate(given, prompt_ids, prompt_mel.shape[1]))
    z = torch.randn(mu.shape, generator=torch.Generator().manual_seed(0)) * model.config.flow.temperature
    found["estimator"], mel = seconds(lambda: who.mel(mu, prompt_mel, embedding, z))
    found["vocoder"], _ = seconds(lambda: model.vocoder(mel, generator=torch.Generator().manual_seed(0)))
    found["total"] = sum(found.values())
    return found, mel


def streamed(who: Published | Ours, ids: list[int], voice: VoicePrompt) -> Figures:
    """Seconds to the first sound and to the last."""
    pieces, spent = iter(who.pieces(ids, voice)), []
    while True:
        took, sound = seconds(lambda: next(pieces, None))
        if sound is None:
            return {"first": spent[0], "stream": sum(spent), "slowest piece": max(spent)}
        spent.append(took)


def compare(
    model: Token2Wav, voice: VoicePrompt, analyse: Callable[[], VoicePrompt] | None, args: argparse.Namespace
) -> dict[str, Figures]:
    """A row for the published way and one for each precision."""
    ids = torch.randint(model.config.flow.vocab_size, (args.ids,), generator=torch.Generator().manual_seed(1))
    contestants: dict[str, Published | Ours] = {"published": Published(model, analyse)}
    contestants |= {f"ours {name}": Ours(optimize(model, name)) for name in args.precisions}
    rounds: dict[str, list[Figures]] = {name: [] for name in contestants}
    mels: dict[str, Tensor] = {}
    for number in range(args.repeat + 1):  # the first round warms up
        for name, who in contestants.items():
            found, mels[name] = whole(who, ids.tolist(), voice)
            if number:
                rounds[name].append(found | streamed(who, ids.tolist(), voice))
    rows = {name: medians(some) for name, some in rounds.items()}
    for name, row in rows.items():
        change = (mels[name] - mels["published"]).abs()
        row |= {"mel change mean": float(change.mean()), "mel change max": float(change.max())}
        spoken = mels[name].shape[2] * model.config.vocoder.samples_per_frame / model.rate
        row |= {
            "real-time factor": row["total"] / spoken,
            "streamed real-time factor": row["stream"] / spoken,
        }
    return rows


def medians(rounds: list[Figures]) -> Figures:
    return {name: statistics.median(figures[name] for figures in rounds) for name in rounds[0]}


def voice_for(
    model: Token2Wav, prompt_seconds: float
) -> tuple[VoicePrompt, Callable[[], VoicePrompt] | None]:
    """A voice with a prompt of so many seconds, and how to analyse it anew where the analysers are there."""
    generator = torch.Generator().manual_seed(2)
    folder = files("echat") / "models" / "echat-tiny" / "examples" / "question.wav"
    if model.voices and prompt_seconds:
        waveform, rate = read(str(folder))
        waveform = waveform.repeat(1 + int(prompt_seconds * rate) // len(waveform))[
            : int(prompt_seconds * rate)
        ]
        return model.voice_prompt(waveform, rate), lambda: model.voice_prompt(waveform, rate)
    if model.voices:
        return model.voice(None).without_prompt(), None
    n = round(prompt_seconds * model.config.flow.input_frame_rate)
    ids = torch.randint(model.config.flow.vocab_size, (n,), generator=generator)
    mel = torch.randn(model.config.flow.mel_frames(n), model.config.flow.output_size, generator=generator) - 5
    return VoicePrompt(ids, mel, torch.randn(model.config.flow.spk_embed_dim, generator=generator)), None


# --- report


def show(title: str, rows: dict[str, Figures]) -> None:
    """Seconds, and beside them how many times as fast as the published way."""
    print(
        f"\n{title}\n{'processor seconds':<18}" + "".join(f"{part:>18}" for part in PARTS) + "   mel change"
    )
    for name, row in rows.items():
        line = f"{name:<18}"
        for part in PARTS:
            ratio = f"({rows['published'][part] / row[part]:.2f}x)"
            line += f"{row[part]:>10.3f} {ratio:>7}"
        print(line + f"   {row['mel change mean']:.1e} / {row['mel change max']:.1e}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", nargs="+", choices=list(MODELS), default=["released", "echat-tiny"])
    parser.add_argument("--ids", type=int, default=100, help="speech ids; 25 are a second")
    parser.add_argument(
        "--prompts", nargs="+", type=float, default=[0, 3, 10], help="seconds of voice prompt"
    )
    parser.add_argument("--precisions", nargs="+", default=["fp32", "bf16", "int8"])
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("-o", "--output", type=Path, default=RESULTS)
    args = parser.parse_args()
    if args.quick:
        args.size, args.ids, args.prompts, args.repeat = ["miniature"], 42, [0, 1], 1
    torch.set_num_threads(args.threads)
    found = {}
    for size in args.size:
        model = MODELS[size]()
        for prompt_seconds in args.prompts:
            title = f"{size}, {args.ids} ids, prompt of {prompt_seconds:g} s"
            found[title] = compare(model, *voice_for(model, prompt_seconds), args)
            show(title, found[title])
    machine = f"{processor_name(torch.device('cpu'))}, {platform.machine()}, {args.threads} threads"
    args.output.parent.mkdir(parents=True, exist_ok=True)
    result = {"machine": machine, "torch": torch.__version__, "cases": found}
    args.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"\n{machine}; written to {args.output}")


if __name__ == "__main__":
    main()
