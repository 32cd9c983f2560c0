"""Speech tokenization of a corpus: a conversion that encodes sound as speech ids on its way."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import islice
from pathlib import Path

from torch import Tensor

from echat.audio.features import SAMPLE_RATE
from echat.audio.speech_tokens import CODEC_SIZE, AnySpeechTokenizer
from echat.checkpoint import atomic_path
from echat.data.audio_loading import load_audio
from echat.data.defects import DataError, Defect, DefectReport, defect_from
from echat.data.formats.corpus import Format
from echat.data.formats.manifest import SPEECH_IDS, read_manifest
from echat.data.sample import AudioRef, Sample
from echat.data.tools.conversion import ConversionConfig, JobReport, convert
from echat.data.tools.executors import ExecutorName
from echat.dialogue.tasks import TASKS

WINDOW = 256  # records looked at together, so that sounds of like length meet; 10 s each take 160 MB
BATCH_SECONDS = 60  # of sound encoded at once, padding included


class TokenizeConfig(ConversionConfig):
    """A conversion, and the speech tokenizer on its way."""

    to: Format = "shard"
    tokenizer: str  # folder of the speech tokenizer
    again: bool = False  # also for records that have ids


def tokenize(
    config: TokenizeConfig,
    load: Callable[[str], AnySpeechTokenizer],
    workers: int = 1,
    strict: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
    executor: ExecutorName = "local",
) -> JobReport:
    """Write the corpus with speech ids; resumable, parallel and reported as :func:`convert` is.

    ``load`` opens the tokenizer folder, once in each process. A record whose sound cannot be encoded is left
    out and counted.
    """
    return convert(config, workers, strict, progress, executor, _SpeechIdChange(config, load))


def write_speech_ids(tokenizer: AnySpeechTokenizer, manifest: Path) -> JobReport:
    """Write the speech ids of a manifest into a sidecar file beside it, which appears whole or not at all."""
    spoken = [sample for sample in read_manifest(manifest) if audio_for_speech_ids(sample) is not None]
    count, defects = 0, DefectReport()
    with (
        atomic_path(manifest.with_name(SPEECH_IDS)) as temporary,
        temporary.open("w", encoding="utf-8") as lines,
    ):
        for sample in SpeechIdEncoder(tokenizer, again=True)(spoken, defects):
            lines.write(json.dumps({"key": sample.key, "speech_ids": list(sample.speech_ids or ())}) + "\n")
            count += 1
    return JobReport(count, defects)


def audio_for_speech_ids(sample: Sample) -> AudioRef | None:
    """The sound that the record's ``speech_ids`` stand for: the reply, or what a record without reply says.

    None where there is no such sound, and where the record's own task writes no speech.
    """
    if sample.task is not None and not TASKS[sample.task].writes_speech:
        return None
    if sample.reply_audio is not None or sample.reply is not None:
        return sample.reply_audio
    return sample.audio


@dataclass(frozen=True)
class _SpeechIdChange:
    """The change on the way of a conversion; it travels to other processes, the tokenizer is opened there."""

    config: TokenizeConfig
    load: Callable[[str], AnySpeechTokenizer]

    def __call__(self, samples: Iterable[Sample], defects: DefectReport) -> Iterator[Sample]:
        tokenizer = _loaded(self.load, self.config.tokenizer)
        return SpeechIdEncoder(tokenizer, self.config.codec_size, self.config.again)(samples, defects)


@dataclass(frozen=True)
class SpeechIdEncoder:
    """Samples in, the same with speech ids out, in the same order; what cannot be encoded is a defect."""

    tokenizer: AnySpeechTokenizer
    codec_size: int = CODEC_SIZE
    again: bool = False  # also for records that have ids

    def __call__(self, samples: Iterable[Sample], defects: DefectReport) -> Iterator[Sample]:
        stream = iter(samples)
        while window := list(islice(stream, WINDOW)):
            encoded = _Window(self.tokenizer)
            wanted = [self._sound(sample) for sample in window]
            encoded.encode({ref for ref in wanted if ref is not None})
            for sample, ref in zip(window, wanted):
                changed = None
                with defects.catch(ref.path if ref is not None else "", key=sample.key):
                    changed = self._with_ids(sample, ref, encoded) if ref is not None else sample
                if changed is not None:
                    yield changed

    def _sound(self, sample: Sample) -> AudioRef | None:
        return None if sample.speech_ids and not self.again else audio_for_speech_ids(sample)

    def _with_ids(self, sample: Sample, ref: AudioRef, encoded: _Window) -> Sample:
        place = f"member {ref.member}" if ref.member else ""
        error = encoded.errors.get(ref)
        if error is not None:
            raise DataError(defect_from(error, ref.path, place, sample.key)) from error
        changed = replace(sample, speech_ids=tuple(encoded.ids[ref]))
        for kind, reason in changed.defects(self.codec_size):
            raise DataError(Defect(kind, ref.path, place, sample.key, reason))
        return changed


class _Window:
    """Ids of some sounds, each encoded once, beside others of like length."""

    def __init__(self, tokenizer: AnySpeechTokenizer) -> None:
        self._tokenizer = tokenizer
        self.ids: dict[AudioRef, list[int]] = {}
        self.errors: dict[AudioRef, Exception] = {}

    def encode(self, refs: Iterable[AudioRef]) -> None:
        loaded: list[tuple[AudioRef, Tensor]] = []
        for ref in sorted(refs, key=lambda ref: (ref.where, ref.start_seconds or 0.0)):
            try:
                loaded.append((ref, load_audio(ref)[0]))
            except ValueError as error:
                self.errors[ref] = error
        loaded.sort(key=lambda item: len(item[1]))  # a stable order: the same batches in every run
        for batch in _batches(loaded):
            self._encode(batch)

    def _encode(self, batch: Sequence[tuple[AudioRef, Tensor]]) -> None:
        """All at once; one by one where the tokenizer refuses one of them."""
        try:
            rows = self._tokenizer.encode([waveform for _, waveform in batch])
        except ValueError as error:
            if len(batch) == 1:
                self.errors[batch[0][0]] = error
                return
            for item in batch:
                self._encode([item])
            return
        self.ids |= {ref: row for (ref, _), row in zip(batch, rows, strict=True)}


def _batches(loaded: Sequence[tuple[AudioRef, Tensor]]) -> Iterator[list[tuple[AudioRef, Tensor]]]:
    """Sounds, shortest first, in batches that fit."""
    batch: list[tuple[AudioRef, Tensor]] = []
    for item in loaded:
        if batch and (len(batch) + 1) * len(item[1]) > BATCH_SECONDS * SAMPLE_RATE:
            yield batch
            batch = []
        batch.append(item)
    if batch:
        yield batch


@lru_cache(maxsize=1)
def _loaded(load: Callable[[str], AnySpeechTokenizer], folder: str) -> AnySpeechTokenizer:
    return load(folder)
