"""Checks of a model folder: front end, encoder, training forward passes, greedy generations, rules of
decoding."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate, chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from echat.audio.features import HOP, N_MELS, SAMPLE_RATE, WINDOW, log_mel, mel_filterbank
from echat.audio.waveform import resample
from echat.infer.check import Check, close, relative, same
from echat.infer.engine import Engine, load_released
from echat.infer.golden_layout import IGNORE, GoldenBatch, LayoutReader
from echat.model.speech_llm import SpeechLLM

LOG_MEL, FRAMES, LOGITS, LOSS, GRADIENT = 1e-4, 2e-5, 2e-4, 1e-5, 1e-3
SUM_OF_EMBEDDING = 2e-4  # sums over the width of one position
# Two bfloat16 programs round in different places; this is a few times what equivalent runs differ by.
BFLOAT16 = 5e-2
MODULES = {
    "encoder": "encoder",
    "down_sample_2": "subsampler",
    "speech_transformer": "adapter",
    "speech_llama_proj": "projection",
    "llama_model": "llm",
    "speech_token_emded": "speech_embedding",
    "speech_head": "speech_head",
}


@dataclass(frozen=True)
class GoldenModel:
    """A model folder, its parts read when first needed."""

    folder: Path

    @cached_property
    def config(self) -> dict[str, Any]:
        return self.read_json("config.json")

    @cached_property
    def engine(self) -> Engine:
        """The checkpoint in float32, decoding as the reference does, with the ids of `config.json`."""
        config = self.config
        engine = load_released(
            next(self.folder.glob("*.pt")),
            self.folder / config["llm_path"],
            profile="reference",
            encoder_heads=config["encoder"]["attention_heads"],
            adapter_heads=config["adapter"]["attention_heads"],
        )
        vocabulary = replace(
            engine.vocabulary,
            unknown=config["ids"]["unk_label"],
            text_end=config["ids"]["text_eos"],
            age_trigger=tuple(config["generation"]["text_trigger_sequence"]),
            age_allowed=tuple(config["generation"]["text_trigger_allowed"]),
        )
        return replace(engine, vocabulary=vocabulary)

    @property
    def model(self) -> SpeechLLM:
        return self.engine.model

    def arrays(self, name: str) -> dict[str, Tensor]:
        """All arrays of an `.npz`; 0-dimensional ones too."""
        with np.load(self.folder / name) as archive:
            return {key: torch.from_numpy(np.asarray(archive[key])) for key in archive.files}

    def read_json(self, name: str) -> Any:
        return json.loads((self.folder / name).read_text(encoding="utf-8"))

    def mel(self, wave: str) -> Tensor:
        """The recorded log-mel of a waveform by name."""
        return self._frontend[f"{wave}_logmel"]

    @cached_property
    def _frontend(self) -> dict[str, Tensor]:
        return self.arrays("frontend.npz")


def checks(folder: Path) -> Iterator[Check]:
    """Everything that the folder records."""
    from echat.infer import verify_decoding

    golden = GoldenModel(folder)
    parts = (
        ("frontend.npz", frontend_checks),
        ("encoder.npz", encoder_checks),
        ("forward.json", forward_checks),
        ("generate.json", verify_decoding.generate_checks),
        ("processors.json", verify_decoding.processor_checks),
    )
    for file, part in parts:
        if (folder / file).is_file():
            for check in part(golden):
                yield replace(check, name=f"{folder.name}/{Path(file).stem}/{check.name}")


# --- front end


def frontend_checks(golden: GoldenModel) -> Iterator[Check]:
    """Waveform -> mono -> 16 kHz -> log-mel."""
    config, arrays = golden.config, golden.arrays("frontend.npz")
    yield same(
        "sizes", [SAMPLE_RATE, WINDOW, HOP], [config[k] for k in ("sample_rate", "n_fft", "hop_length")]
    )
    for name in [key.removesuffix("_pcm") for key in arrays if key.endswith("_pcm")]:
        rate = int(arrays[f"{name}_rate"])
        waveform = resample((arrays[f"{name}_pcm"].float() / 32768).mean(dim=0), rate, SAMPLE_RATE)
        if f"{name}_resampled" in arrays:
            yield close(f"{name}_resampled", waveform, arrays[f"{name}_resampled"], LOG_MEL)
        mel = log_mel(waveform, config["num_mel_bins"])
        yield same(f"{name}_len", len(mel), arrays[f"{name}_len"])
        yield close(f"{name}_logmel", mel, arrays[f"{name}_logmel"], LOG_MEL)
        if f"{name}_logmel_bf16" in arrays:
            yield close(f"{name}_logmel_bf16", mel.bfloat16(), arrays[f"{name}_logmel_bf16"], BFLOAT16)
    bank = mel_filterbank(config.get("num_mel_bins", N_MELS), WINDOW, SAMPLE_RATE)
    yield close("mel_filters", bank, arrays["mel_filters"], 1e-6)


# --- encoder to projection


def encoder_checks(golden: GoldenModel) -> Iterator[Check]:
    """Every stage from log-mel to the vectors that the language model reads, where the masks are true."""
    arrays = golden.arrays("encoder.npz")
    for case in dict.fromkeys(key.split("/")[0] for key in arrays):
        values = {key.split("/")[1]: value for key, value in arrays.items() if key.startswith(f"{case}/")}
        for check in _encoder_case(golden.model, values):
            yield replace(check, name=f"{case}/{check.name}")


@torch.no_grad()
def _encoder_case(model: SpeechLLM, values: dict[str, Tensor]) -> list[Check]:
    mel, lens = values["feats"], values["feats_lengths"].long()
    embedded, _ = model.encoder.embed(mel, lens, released_padding=True)
    heard, heard_lens = model.encoder(mel, lens, released_padding=True)
    frames, frame_lens = model.subsampler(heard, heard_lens)
    projected, projected_lens = model.encode(mel, lens, released_padding=True)
    stages = {
        "encoder_embed": (embedded, "encoder_mask"),
        "encoder_out": (heard, "encoder_mask"),
        "down_out": (frames, "down_mask"),
        "adapter_embed": (model.adapter.embed(frames), "adapter_mask"),
        "adapter_out": (model.adapter(frames, frame_lens), "adapter_mask"),
        "proj": (projected, "proj_mask"),
    }
    found = [
        close(name, value, values[name], FRAMES, values[mask].reshape(value.shape[:2]))
        for name, (value, mask) in stages.items()
    ]
    for name, found_lens in (
        ("encoder_mask", heard_lens),
        ("down_mask", frame_lens),
        ("adapter_mask", frame_lens),
        ("proj_mask", projected_lens),
    ):
        golden_mask = values[name].reshape(len(lens), -1)
        mask = torch.arange(golden_mask.shape[1]) < found_lens[:, None]
        found.append(same(name, mask, golden_mask))
    found.append(same("adapter_lengths", frame_lens, values["adapter_lengths"]))
    if "proj_bf16" in values:
        found.append(_bfloat16_check(model, mel, lens, values))
    return found


def _bfloat16_check(model: SpeechLLM, mel: Tensor, lens: Tensor, values: dict[str, Tensor]) -> Check:
    low = SpeechLLM(model.config).bfloat16().eval()
    low.load_state_dict(model.state_dict())
    projected, _ = low.encode(mel.bfloat16(), lens, released_padding=True)
    return close("proj_bf16", projected, values["proj_bf16"], BFLOAT16, values["proj_mask"])


# --- training forward passes


def forward_checks(golden: GoldenModel) -> Iterator[Check]:
    """One padded batch per output type: inputs, hidden states, logits, loss, gradient norms."""
    arrays = golden.arrays("forward.npz")
    for case, about in golden.read_json("forward.json").items():
        values = {key.removeprefix(f"{case}/"): v for key, v in arrays.items() if key.startswith(f"{case}/")}
        for check in _forward_case(golden, arrays, values, about):
            yield replace(check, name=f"{case}/{check.name}")


def _forward_case(
    golden: GoldenModel, arrays: dict[str, Tensor], values: dict[str, Tensor], about: dict[str, Any]
) -> Iterator[Check]:
    model = golden.model
    model.requires_grad_(True).zero_grad(set_to_none=True)
    batch, embeds = _golden_inputs(golden, arrays, values, about)
    hidden, _ = model.hidden(embeds, batch.mask, batch.positions)
    is_text_only = about["n_classes"] == golden.engine.vocabulary.text_size
    logits = model.text_logits(hidden) if is_text_only else model.combined_logits(hidden)
    loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), batch.labels[:, 1:].flatten(), ignore_index=IGNORE)
    loss.backward()
    yield same("attention_mask", batch.mask, values["attention_mask"])
    yield same("position_ids", batch.positions, values["position_ids"])
    yield same("labels", batch.labels, values["labels"])
    mask = values["attention_mask"]
    yield close("inputs_embeds_sum", embeds.sum(-1), values["inputs_embeds_sum"], SUM_OF_EMBEDDING, mask)
    yield close("hidden_sum", hidden.sum(-1), values["hidden_sum"], 2 * SUM_OF_EMBEDDING, mask)
    yield close("logits_sum", logits.sum(-1), values["logits_sum"], LOGITS * logits.shape[-1] / 20, mask)
    yield close("logits_logsumexp", logits.logsumexp(-1), values["logits_logsumexp"], LOGITS, mask)
    best = logits.gather(-1, values["logits_argmax"][..., None])[..., 0]  # a tie may be broken either way
    yield close("logits_argmax", best, logits.amax(-1), LOGITS, mask)
    if "label_logits" in values:
        item, place = values["label_pos"].T
        yield close("label_logits", logits[item, place], values["label_logits"], LOGITS)
    yield close("loss", loss, about["loss"], LOSS)
    for theirs, norm in about["grad_norm"].items():
        yield relative(f"grad_norm/{theirs}", _gradient_norm(model, MODULES[theirs]), norm, GRADIENT)
    model.zero_grad(set_to_none=True)


def _golden_inputs(
    golden: GoldenModel, arrays: dict[str, Tensor], values: dict[str, Tensor], about: dict[str, Any]
) -> tuple[GoldenBatch, Tensor]:
    """The batch of a case, and its embeddings with all sounds encoded as the reference did."""
    model, vocabulary = golden.model, golden.engine.vocabulary
    mel = arrays[about["inputs"]["feats"]]
    frames, frame_lens = model.encode(mel, values["in_feats_lengths"].long(), released_padding=True)
    sounds = {
        f"row {item} of the batch features": row[:length]
        for item, (row, length) in enumerate(zip(frames, frame_lens.tolist()))
    }
    for turn in chain(*about["inputs"].get("history", [])):
        alone = arrays[turn["feat"]][None]
        past, _ = model.encode(alone, torch.tensor([alone.shape[1]]), released_padding=True)
        sounds[turn["feat"]] = past[0]
    ends = list(accumulate(map(len, sounds.values())))
    rows = {name: range(end - len(sounds[name]), end) for name, end in zip(sounds, ends)}
    reader = LayoutReader(
        golden.engine.tokenizer.encode,
        vocabulary.text_size,
        golden.config["ids"]["unk_label"],
        vocabulary.user_audio_begin,
        frames_of=lambda name: rows[name],
        labels_of=lambda item: values["in_target"][item].tolist(),
    )
    batch = reader.read(about["layout"])
    return batch, model.assemble(batch.kinds, batch.ids, torch.cat(list(sounds.values())))


def _gradient_norm(model: SpeechLLM, module: str) -> float:
    gradients = [p.grad for p in model.get_submodule(module).parameters() if p.grad is not None]
    return float(torch.stack([g.norm() for g in gradients]).norm()) if gradients else 0.0
