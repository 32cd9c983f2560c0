"""Checks of a model folder: encoder and training forward passes."""

import copy
from collections.abc import Iterator
from dataclasses import replace
from itertools import accumulate, chain
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from echat.dialogue.vocabulary import IGNORE
from echat.model.speech_llm import SpeechLLM
from echat.verify.comparison import Backend, Check, check_equal, check_relative
from echat.verify.golden_folder import GoldenModel
from echat.verify.golden_layout import GoldenBatch, LayoutReader
from echat.verify.tolerances import (
    FRAMES,
    GRADIENT,
    LOGITS,
    LOSS,
    SUM_OF_EMBEDDING,
    SUM_OF_HIDDEN,
    SUM_OF_LOGITS,
)

MODULES = {
    "encoder": "encoder",
    "down_sample_2": "subsampler",
    "speech_transformer": "adapter",
    "speech_llama_proj": "projection",
    "llama_model": "llm",
    "speech_token_emded": "speech_embedding",
    "speech_head": "speech_head",
}


# --- encoder to projection


def encoder_checks(golden: GoldenModel) -> Iterator[Check]:
    """Every stage from log-mel to the vectors that the language model reads, where the masks are true."""
    arrays = golden.arrays("encoder.npz")
    for case in dict.fromkeys(key.split("/")[0] for key in arrays):
        values = {key.split("/")[1]: value for key, value in arrays.items() if key.startswith(f"{case}/")}
        for check in _encoder_case(golden, values):
            yield replace(check, name=f"{case}/{check.name}")


@torch.no_grad()
def _encoder_case(golden: GoldenModel, values: dict[str, Tensor]) -> list[Check]:
    model, backend = golden.model, golden.backend
    mel, lens = backend.to_device(values["feats"]), backend.to_device(values["feats_lengths"].long())
    embedded, _ = model.encoder.embed(mel, lens, released_padding=True)
    encoded, encoded_lens = model.encoder(mel, lens, released_padding=True)
    frames, frame_lens = model.subsampler(encoded, encoded_lens)
    projected, projected_lens = model.encode(mel, lens, released_padding=True)
    stages = {
        "encoder_embed": (embedded, "encoder_mask"),
        "encoder_out": (encoded, "encoder_mask"),
        "down_out": (frames, "down_mask"),
        "adapter_embed": (model.adapter.embed(frames), "adapter_mask"),
        "adapter_out": (model.adapter(frames, frame_lens), "adapter_mask"),
        "proj": (projected, "proj_mask"),
    }
    found = [
        backend.check_close(name, value, values[name], FRAMES, values[mask].reshape(len(lens), -1))
        for name, (value, mask) in stages.items()
    ]
    for name, found_lens in (
        ("encoder_mask", encoded_lens),
        ("down_mask", frame_lens),
        ("adapter_mask", frame_lens),
        ("proj_mask", projected_lens),
    ):
        golden_mask = values[name].reshape(len(lens), -1)
        mask = torch.arange(golden_mask.shape[1]) < found_lens[:, None].cpu()
        found.append(check_equal(name, mask, golden_mask))
    found.append(check_equal("adapter_lengths", frame_lens, values["adapter_lengths"]))
    if "proj_bf16" in values:
        found.append(_recorded_bfloat16_check(golden, mel, lens, values))
    return found


def _recorded_bfloat16_check(
    golden: GoldenModel, mel: Tensor, lens: Tensor, values: dict[str, Tensor]
) -> Check:
    """The front part in bfloat16, which the folder records too; on the device, whatever the precision."""
    model, backend = golden.model, replace(golden.backend, precision="bf16")
    if model.projection.weight.dtype != backend.dtype:
        model = copy.deepcopy(model).to(backend.dtype)
    projected, _ = model.encode(backend.to_device(mel), lens, released_padding=True)
    return backend.check_close("proj_bf16", projected, values["proj_bf16"], FRAMES, values["proj_mask"])


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
    model, backend = golden.model, golden.backend
    model.requires_grad_(True).zero_grad(set_to_none=True)
    batch, embeds = _golden_inputs(golden, arrays, values, about)
    hidden, _ = model.hidden(embeds, batch.mask, batch.positions)
    is_text_only = about["n_classes"] == golden.engine.vocabulary.text_size
    logits = (model.text_logits(hidden) if is_text_only else model.combined_logits(hidden)).float()
    loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), batch.labels[:, 1:].flatten(), ignore_index=IGNORE)
    loss.backward()
    yield check_equal("attention_mask", batch.mask, values["attention_mask"])
    yield check_equal("position_ids", batch.positions, values["position_ids"])
    yield check_equal("labels", batch.labels, values["labels"])
    yield from _forward_values(backend, values, embeds, hidden, logits)
    yield backend.check_close("loss", loss, about["loss"], LOSS)
    for theirs, norm in about["grad_norm"].items():
        found, allowed = _gradient_norm(model, MODULES[theirs]), GRADIENT[backend.is_bf16]
        yield check_relative(f"grad_norm/{theirs}", found, norm, allowed)
    model.zero_grad(set_to_none=True)


def _forward_values(
    backend: Backend, values: dict[str, Tensor], embeds: Tensor, hidden: Tensor, logits: Tensor
) -> Iterator[Check]:
    mask = values["attention_mask"]
    embed_sums, hidden_sums = embeds.float().sum(-1), hidden.float().sum(-1)
    yield backend.check_close(
        "inputs_embeds_sum", embed_sums, values["inputs_embeds_sum"], SUM_OF_EMBEDDING, mask
    )
    yield backend.check_close("hidden_sum", hidden_sums, values["hidden_sum"], SUM_OF_HIDDEN, mask)
    sum_of_logits = SUM_OF_LOGITS._replace(fp32=SUM_OF_LOGITS.fp32 * logits.shape[-1])
    yield backend.check_close("logits_sum", logits.sum(-1), values["logits_sum"], sum_of_logits, mask)
    yield backend.check_close(
        "logits_logsumexp", logits.logsumexp(-1), values["logits_logsumexp"], LOGITS, mask
    )
    best = logits.gather(-1, backend.to_device(values["logits_argmax"])[..., None])[..., 0]
    yield backend.check_close(
        "logits_argmax", best, logits.amax(-1), LOGITS, mask
    )  # a tie may be broken either way
    if "label_logits" in values:
        item, rows = values["label_pos"].to(backend.device).T
        yield backend.check_close("label_logits", logits[item, rows], values["label_logits"], LOGITS)


def _golden_inputs(
    golden: GoldenModel, arrays: dict[str, Tensor], values: dict[str, Tensor], about: dict[str, Any]
) -> tuple[GoldenBatch, Tensor]:
    """The batch of a case, and its embeddings with all sounds encoded as the reference did."""
    model, vocabulary, backend = golden.model, golden.engine.vocabulary, golden.backend
    mel, lens = (
        backend.to_device(arrays[about["inputs"]["feats"]]),
        backend.to_device(values["in_feats_lengths"].long()),
    )
    frames, frame_lens = model.encode(mel, lens, released_padding=True)
    sounds = {
        f"row {item} of the batch features": row[:length]
        for item, (row, length) in enumerate(zip(frames, frame_lens.tolist()))
    }
    for turn in chain(*about["inputs"].get("history", [])):
        alone = backend.to_device(arrays[turn["feat"]][None])
        past, _ = model.encode(alone, torch.tensor([alone.shape[1]]).to(alone.device), released_padding=True)
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
    batch = reader.read(about["layout"]).to(backend.device)
    return batch, model.assemble(batch.kinds, batch.ids, torch.cat(list(sounds.values())))


def _gradient_norm(model: SpeechLLM, module: str) -> float:
    gradients = [p.grad for p in model.get_submodule(module).parameters() if p.grad is not None]
    return float(torch.stack([g.float().norm() for g in gradients]).norm()) if gradients else 0.0
