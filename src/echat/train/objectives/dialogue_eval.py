"""Sample evaluation of dialogues through the engine: word errors, labels, thoughts, some outputs in full."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from echat.data.audio_loading import AudioLoader
from echat.data.conversation import build_conversation
from echat.data.mixture import MixtureComponent
from echat.data.sample import Sample
from echat.dialogue.rendering import target_text
from echat.dialogue.tasks import Task, get_task
from echat.dialogue.thinking import VOICE_SLOTS, LabelThought
from echat.dialogue.turns import Conversation
from echat.dialogue.understanding import parse_understanding
from echat.infer.engine import Engine
from echat.infer.events import Reply
from echat.infer.loading import find_model
from echat.metrics import Confusion, error_rate
from echat.model_files import TOKEN2WAV_FOLDER
from echat.token2wav.token2wav import Token2Wav
from echat.train.objective import SampleOutput, SampleReport
from echat.train.recipe import DecodeConfig

MAX_IDS = 800  # of one output; a model that does not stop yet costs no more


@dataclass(frozen=True)
class DecodingOutcome:
    """A record, its conversation with the reference reply, and the model's reply."""

    sample: Sample
    conversation: Conversation
    reply: Reply


def load_token2wav(voice: str | None) -> Token2Wav | None:
    """The token2wav of a model folder, which synthesizes speech ids."""
    return None if voice is None else Token2Wav.from_folder(find_model(voice) / TOKEN2WAV_FOLDER)


def decode_dialogues(
    engine: Engine, components: Sequence[MixtureComponent], audio_loader: AudioLoader, config: DecodeConfig
) -> SampleReport:
    """Decode the first records of every validation source and task."""
    metrics: dict[str, float] = {}
    samples: list[SampleOutput] = []
    for component in components:
        if component.task is None:
            continue
        task = get_task(component.task)
        outcomes = list(_outcomes(engine, component, task, audio_loader, config.records))
        found = _metrics(task, outcomes)
        metrics |= {f"{task.name}/{name}": value for name, value in found.items() if value is not None}
        samples += [_sample_output(engine, task, outcome) for outcome in outcomes[: config.samples]]
    return SampleReport(metrics, samples)


def _outcomes(
    engine: Engine, component: MixtureComponent, task: Task, audio_loader: AudioLoader, limit: int
) -> Iterator[DecodingOutcome]:
    chosen = [component.samples[number] for number in range(min(limit, len(component.samples)))]
    conversations = [_conversation(sample, task, audio_loader, component.pseudo_audio) for sample in chosen]
    asked = [Conversation(conversation.turns[:-1]) for conversation in conversations]
    decoding = task.decoding_for(engine.profile)
    bounded = type(decoding)(**{**vars(decoding), "max_new_ids": min(MAX_IDS, decoding.max_new_ids)})
    replies = engine.run_batch(asked, task, seed=0, decoding=bounded, speak=False)
    for sample, conversation, reply in zip(chosen, conversations, replies, strict=True):
        yield DecodingOutcome(sample, conversation, reply)


def _conversation(sample: Sample, task: Task, audio_loader: AudioLoader, pseudo_audio: bool) -> Conversation:
    has_audio_input = task.input_modality == "audio" and not pseudo_audio
    past = [
        torch.from_numpy(audio_loader.read(t.audio)) if has_audio_input and t.audio else None
        for t in sample.history
    ]
    audio = torch.from_numpy(audio_loader.read(sample.audio)) if has_audio_input and sample.audio else None
    return build_conversation(sample, task, audio, past, pseudo_audio)


def _metrics(task: Task, outcomes: Sequence[DecodingOutcome]) -> dict[str, float | None]:
    """Word errors and label accuracies of transcripts, share of thoughts that parse."""
    if task.understands:
        understood = [parse_understanding(task, o.reply.raw_text) for o in outcomes]
        words = (
            [(o.sample.text or "", u.text) for o, u in zip(outcomes, understood)] if task.transcribes else []
        )
        kinds: Sequence[str] = task.labels
        predicted = [u.labels for u in understood]
    elif task.thinks == "label":
        thoughts = [o.reply.thought for o in outcomes]
        labels = [t if isinstance(t, LabelThought) else None for t in thoughts]
        words = [(o.sample.text or "", t.transcript if t else "") for o, t in zip(outcomes, labels)]
        kinds, predicted = VOICE_SLOTS, labels  # type: ignore[assignment]
    else:
        words, kinds, predicted = [], (), []
    found: dict[str, float | None] = {"word_errors": error_rate(words).rate}
    for kind in kinds:
        both = [(getattr(o.sample.labels, kind), getattr(p, kind, None)) for o, p in zip(outcomes, predicted)]
        found[f"{kind}_accuracy"] = Confusion.of(both).accuracy
    if task.thinks and outcomes:
        found["parses"] = sum(o.reply.wellformed for o in outcomes) / len(outcomes)
    return found


def _sample_output(engine: Engine, task: Task, outcome: DecodingOutcome) -> SampleOutput:
    sample, reply = outcome.sample, outcome.reply
    waveform = rate = None
    if engine.token2wav is not None and reply.speech_ids:
        waveform = engine.token2wav.synthesize(list(reply.speech_ids))
        rate = engine.token2wav.rate
    ref = sample.audio if task.input_modality == "audio" else None
    target = outcome.conversation.target
    reference = (
        target_text(outcome.conversation.question, target, task) if target and task.writes_text else ""
    )
    is_file = ref is not None and ref.is_file and Path(ref.path).is_file()
    return SampleOutput(
        key=sample.key,
        task=task.name,
        reference=reference or sample.reply or sample.text or "",
        hypothesis=reply.raw_text,
        question=ref.path if ref is not None and is_file else None,
        waveform=waveform,
        rate=rate,
    )
