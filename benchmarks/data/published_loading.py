"""The published way from tars to batches, plainly written: one sample at a time, all made anew for each.

A tar is read member by member; a record is decoded, its prompt and target tokenized, its log-mel computed
with a window and a filter bank of its own, whatever the task; then masks, a shuffle buffer and a sort buffer
that hold the waveform too, one bin per task, padding. What the model adds around them is not made here.
"""

import io
import json
import random
import re
import tarfile
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import soundfile
import torch
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import IterableDataset, get_worker_info
from transformers import PreTrainedTokenizerFast

Sample = dict[str, Any]
SHUFFLE, SORT = 1500, 500
MAX_IN_BATCH = 3700
FORBIDDEN = tuple(f"forbidden name {number}" for number in range(41))  # as many as the published list
SOUND = ("wav", "flac", "mp3", "m4a", "ogg", "opus")
SPEAKS = {"<TEXT2TOKEN>": 1.0, "<S2TCHAT> <TEXT2TOKEN>": 0.8, "<S2TCHAT> <TEXT2TOKEN> <THINK>": 0.6}


class PublishedBatches(IterableDataset):
    """Padded batches of one pass, in this process or in workers of a DataLoader that share the tars out."""

    def __init__(self, tars: list[str], tokenizer_file: str, prompts: dict[str, list[str]]) -> None:
        self.tars, self.tokenizer_file, self.prompts = tars, tokenizer_file, prompts

    def __iter__(self) -> Iterator[Sample]:
        torch.set_num_threads(1)
        tokenizer = PreTrainedTokenizerFast(tokenizer_file=self.tokenizer_file)
        tars, worker = list(self.tars), get_worker_info()
        random.Random(0).shuffle(tars)
        share = tars[worker.id :: worker.num_workers] if worker else tars
        return published_batches(share, tokenizer, self.prompts)


def published_batches(tars: list[str], tokenizer: Any, prompts: dict[str, list[str]]) -> Iterator[Sample]:
    """What is left in the bins at the end is lost, as published."""
    samples = (with_text(s, tokenizer, prompts) for tar in tars for s in records(tar))
    masked = (with_masks(with_features(s)) for s in samples if s is not None)
    return map(padded, bins(sort_buffer(shuffle_buffer(masked))))


def records(path: str) -> Iterator[Sample]:
    """Neighbours of one prefix are a record."""
    with open(path, "rb") as stream, tarfile.open(fileobj=stream, mode="r:*") as tar:
        sample: Sample = {}
        for member in tar:
            prefix, _, suffix = member.name.rpartition(".")
            if sample and sample["key"] != prefix:
                yield sample
                sample = {}
            sample["key"] = prefix
            data = tar.extractfile(member).read()  # type: ignore[union-attr]
            if suffix in ("txt", "task"):
                sample[suffix] = data.decode().strip()
            elif suffix == "extra":
                sample[suffix] = json.loads(data)
            elif suffix in SOUND:
                waveform, rate = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
                sample["wav"], sample["rate"] = torch.from_numpy(waveform).mean(dim=1), rate
        yield sample


def with_text(sample: Sample, tokenizer: Any, prompts: dict[str, list[str]]) -> Sample | None:
    """Target, prompt and speech ids, or None where a rule leaves the record out."""
    if "wav" not in sample:
        sample["wav"], sample["rate"] = torch.randn(160000), 16000
    text, task, extra = sample["txt"], sample["task"], sample["extra"]
    if any(name in text for name in FORBIDDEN):
        return None
    text = re.sub(r"\s*([\u4e00-\u9fff])\s*", r"\1", text.replace("\n", " "))
    text = re.sub(r"\s*([<>])\s*", r"\1", re.sub(r"^<[^<>]*>\s*", "", text))
    if "THINK" in task:
        text = f"<think>{extra['think_str']}<think end>{text}"
    sample["target"] = [*tokenizer.encode(text, add_special_tokens=False), 2]
    prompt = extra.get("question") or random.choice(prompts.get(task, [""]))
    sample["prompt"] = tokenizer.encode(prompt, add_special_tokens=False)
    ids = extra.get("speech_token") if task in SPEAKS else None
    sample["speech"] = [4096, *map(int, ids), 4096] if ids else []
    if task in SPEAKS and 0.8 * len(sample["target"]) >= len(sample["speech"]):
        return None
    return sample


def with_features(sample: Sample) -> Sample:
    """Log-mel, its window and filters made for this sample alone."""
    window = torch.hann_window(400)
    spectrum = torch.stft(sample["wav"], 400, 160, window=window, return_complex=True)
    power = spectrum[..., :-1].abs() ** 2
    mel = torch.from_numpy(filters()) @ power
    mel = torch.clamp(mel, min=1e-10).log10()
    mel = torch.maximum(mel, mel.max() - 8.0)
    sample["feat"] = ((mel + 4.0) / 4.0).T
    return sample


def filters(n_mels: int = 80, n_fft: int = 400, rate: int = 16000) -> np.ndarray:
    """(n_mels, bins) triangles on Slaney's scale, one after the other."""
    linear, knee, step = 200.0 / 3.0, 1000.0, np.log(6.4) / 27.0
    top = knee / linear + np.log(rate / 2 / knee) / step
    mels = np.linspace(0.0, top, n_mels + 2)
    edges = np.where(mels < knee / linear, mels * linear, knee * np.exp(step * (mels - knee / linear)))
    bins = np.fft.rfftfreq(n_fft, 1.0 / rate)
    bank = np.zeros((n_mels, len(bins)), np.float32)
    for row in range(n_mels):
        low, middle, high = edges[row : row + 3]
        rising, falling = (bins - low) / (middle - low), (high - bins) / (high - middle)
        bank[row] = np.maximum(0.0, np.minimum(rising, falling)) * 2.0 / (high - low)
    return bank


def with_masks(sample: Sample) -> Sample:
    """Two masks in time and two over mels, then three substitutions."""
    feat = sample["feat"].clone()
    frames, n_mels = feat.shape
    for _ in range(2):
        start = random.randint(0, frames - 1)
        feat[start : start + random.randint(1, 50)] = 0
        start = random.randint(0, n_mels - 1)
        feat[:, start : start + random.randint(1, 10)] = 0
    original = feat.clone()
    for _ in range(3):
        start = random.randint(0, frames - 1)
        end = min(frames, start + random.randint(1, 30))
        back = random.randint(0, start)
        feat[start:end] = original[start - back : end - back]
    sample["feat"] = feat
    return sample


def shuffle_buffer(samples: Iterable[Sample]) -> Iterator[Sample]:
    yield from _buffered(samples, SHUFFLE, random.shuffle)


def sort_buffer(samples: Iterable[Sample]) -> Iterator[Sample]:
    yield from _buffered(samples, SORT, lambda held: held.sort(key=lambda s: len(s["feat"])))


def _buffered(samples: Iterable[Sample], size: int, arrange: Any) -> Iterator[Sample]:
    held: list[Sample] = []
    for sample in samples:
        held.append(sample)
        if len(held) == size:
            arrange(held)
            yield from held
            held = []
    arrange(held)
    yield from held


def bins(samples: Iterable[Sample]) -> Iterator[list[Sample]]:
    """One bin per task; of the bins that are left only that of the understanding tasks is given out."""
    held: dict[str, list[Sample]] = defaultdict(list)
    longest: dict[str, int] = defaultdict(int)
    for sample in samples:
        task = sample["task"] if sample["task"] in (*SPEAKS, "<TEXT2TEXT>") else "text"
        budget = MAX_IN_BATCH * SPEAKS.get(task, 0.6 if task == "<TEXT2TEXT>" else 1.0)
        size = _positions(sample)
        if held[task] and max(longest[task], size) * (len(held[task]) + 1) > budget:
            yield held[task]
            held[task], longest[task] = [], 0
        held[task].append(sample)
        longest[task] = max(longest[task], size)
    if held["text"]:
        yield held["text"]


def _positions(sample: Sample) -> int:
    has_audio_input = sample["task"] not in ("<TEXT2TOKEN>", "<TEXT2TEXT>")
    own = len(sample["target"]) + len(sample["prompt"]) + len(sample["speech"]) + 58
    return own + (len(sample["feat"]) // 8 if has_audio_input else 0)


def padded(samples: list[Sample]) -> Sample:
    """Everything of a batch, longest sound first."""
    samples = sorted(samples, key=lambda s: -len(s["feat"]))
    batch: Sample = {"keys": [s["key"] for s in samples], "txts": [s["txt"] for s in samples]}
    for name in ("feat", "wav"):
        batch[name] = pad_sequence([s[name] for s in samples], batch_first=True)
        batch[f"{name}_lengths"] = torch.tensor([len(s[name]) for s in samples])
    for name in ("target", "prompt", "speech"):
        rows = [torch.tensor(s[name], dtype=torch.long) for s in samples]
        batch[name] = pad_sequence(rows, batch_first=True, padding_value=-100)
        batch[f"{name}_lengths"] = torch.tensor([len(row) for row in rows])
    return batch
