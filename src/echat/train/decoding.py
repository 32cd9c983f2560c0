"""Held-out dialogues through the engine: word errors, labels, thoughts, and a few of them whole."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from echat.checkpoint import TOKEN2WAV_FOLDER
from echat.data.examples import conversation_of
from echat.data.sample import Sample
from echat.data.sounds import Sounds
from echat.data.stream import Pair
from echat.dialogue.rendering import target_text
from echat.dialogue.tasks import Task, get_task
from echat.dialogue.thinking import LabelThought
from echat.dialogue.turns import Conversation
from echat.dialogue.understanding import parse_understanding
from echat.infer.engine import Engine
from echat.infer.events import Reply
from echat.infer.loading import find_model
from echat.infer.metrics import Confusion, error_rate
from echat.token2wav.token2wav import Token2Wav
from echat.train.validation import DecodeConfig, Decoded, Sampled

LABELS = ("emotion", "gender", "age", "sound_event")
MAX_IDS = 800  # of one output; a model that does not stop yet costs no more


@dataclass(frozen=True)
class Outcome:
    """A record, the finished conversation it teaches, and the model's reply to its question."""

    sample: Sample
    taught: Conversation
    reply: Reply


def open_voice(voice: str | None) -> Token2Wav | None:
    """What makes speech ids heard: the token2wav of a model folder."""
    return None if voice is None else Token2Wav.from_folder(find_model(voice) / TOKEN2WAV_FOLDER)


def decode_dialogues(engine: Engine, pairs: Sequence[Pair], sounds: Sounds, config: DecodeConfig) -> Decoded:
    """Decode the first records of every validation source and task."""
    measures: dict[str, float] = {}
    samples: list[Sampled] = []
    for pair in pairs:
        if pair.task is None:
            continue
        task = get_task(pair.task)
        outcomes = list(_outcomes(engine, pair, task, sounds, config.records))
        found = _measures(task, outcomes)
        measures |= {f"{task.name}/{name}": value for name, value in found.items() if value is not None}
        samples += [_sampled(engine, task, outcome) for outcome in outcomes[: config.samples]]
    return Decoded(measures, samples)


def _outcomes(engine: Engine, pair: Pair, task: Task, sounds: Sounds, limit: int) -> Iterator[Outcome]:
    chosen = [pair.samples[number] for number in range(min(limit, len(pair.samples)))]
    taught = [_conversation(sample, task, sounds, pair.as_text) for sample in chosen]
    asked = [Conversation(conversation.turns[:-1]) for conversation in taught]
    decoding = task.decoding_for(engine.profile)
    bounded = type(decoding)(**{**vars(decoding), "max_new_ids": min(MAX_IDS, decoding.max_new_ids)})
    replies = engine.run_batch(asked, task, seed=0, decoding=bounded, speak=False)
    for sample, conversation, reply in zip(chosen, taught, replies, strict=True):
        yield Outcome(sample, conversation, reply)


def _conversation(sample: Sample, task: Task, sounds: Sounds, as_text: bool) -> Conversation:
    hears = task.hears == "audio" and not as_text
    past = [torch.from_numpy(sounds.read(t.audio)) if hears and t.audio else None for t in sample.history]
    audio = torch.from_numpy(sounds.read(sample.audio)) if hears and sample.audio else None
    return conversation_of(sample, task, audio, past, as_text)


def _measures(task: Task, outcomes: Sequence[Outcome]) -> dict[str, float | None]:
    """Word errors and label accuracies of what was heard, share of thoughts that can be read."""
    if task.understands:
        heard = [parse_understanding(task, o.reply.raw_text) for o in outcomes]
        words = [(o.sample.text or "", h.text) for o, h in zip(outcomes, heard)] if task.transcribes else []
        kinds: Sequence[str] = task.labels
        said = [h.labels for h in heard]
    elif task.thinks == "label":
        thoughts = [o.reply.thought for o in outcomes]
        labels = [t if isinstance(t, LabelThought) else None for t in thoughts]
        words = [(o.sample.text or "", t.transcript if t else "") for o, t in zip(outcomes, labels)]
        kinds, said = LABELS, labels  # type: ignore[assignment]
    else:
        words, kinds, said = [], (), []
    found: dict[str, float | None] = {"word_errors": error_rate(words).rate}
    for kind in kinds:
        both = [(getattr(o.sample.labels, kind), getattr(s, kind, None)) for o, s in zip(outcomes, said)]
        found[f"{kind}_accuracy"] = Confusion.of(both).accuracy
    if task.thinks and outcomes:
        found["parses"] = sum(o.reply.wellformed for o in outcomes) / len(outcomes)
    return found


def _sampled(engine: Engine, task: Task, outcome: Outcome) -> Sampled:
    sample, reply = outcome.sample, outcome.reply
    waveform = rate = None
    if engine.token2wav is not None and reply.speech_ids:
        waveform = engine.token2wav.synthesize(list(reply.speech_ids))
        rate = engine.token2wav.rate
    ref = sample.audio if task.hears == "audio" else None
    target = outcome.taught.target
    wanted = target_text(outcome.taught.question, target, task) if target and task.writes_text else ""
    is_file = ref is not None and ref.is_file and Path(ref.path).is_file()
    return Sampled(
        key=sample.key,
        task=task.name,
        wanted=wanted or sample.reply or sample.text or "",
        said=reply.raw_text,
        question=ref.path if ref is not None and is_file else None,
        waveform=waveform,
        rate=rate,
    )
