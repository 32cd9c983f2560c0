"""How often a changed model (packed, rounded) would choose what the original chooses, on the same prefix."""

from collections.abc import Iterable
from itertools import chain

import torch
from torch import Tensor

from echat.dialogue.rendering import Audio, Segment, Speech
from echat.dialogue.turns import Conversation
from echat.dialogue.vocabulary import AUDIO, SPEECH, TEXT
from echat.infer.audio_input import encode_audio, to_mel
from echat.infer.engine import Engine
from echat.model.speech_llm import SpeechLLM


def greedy_agreement(
    engine: Engine, other: SpeechLLM, dialogues: Iterable[tuple[Conversation, str]], seed: int = 0
) -> tuple[float, int]:
    """Share of positions at which the best id of `other` is that of the engine's model, and their number.

    `dialogues`: conversations to answer, each with its task. The engine writes the replies (by chance with
    `seed`); both models then read the same prompts and replies.
    """
    equal = total = 0
    for conversation, task in dialogues:
        segments = engine.render(conversation, task)
        reply = engine.run(conversation, task, seed=seed, speak=False)
        end, boundary = engine.vocabulary.text_end, engine.vocabulary.speech_boundary
        written = [(TEXT, id_) for id_ in (*reply.text_ids, end)] if reply.text_ids else []
        written += (
            [(SPEECH, id_) for id_ in (boundary, *reply.speech_ids, boundary)] if reply.speech_ids else []
        )
        first = _best_ids(engine.model, segments, written)
        second = _best_ids(other, segments, written)
        equal += sum(a == b for a, b in zip(first, second, strict=True))
        total += len(first)
    return equal / max(total, 1), total


@torch.inference_mode()
def _best_ids(model: SpeechLLM, segments: list[Segment], written: list[tuple[int, int]]) -> list[int]:
    """The best id at every position of the reply `written` (kind, id), each read after those before it."""
    sounds = [segment.audio for segment in segments if isinstance(segment, Audio)]
    frames = encode_audio(model, [to_mel(sound, model.config.encoder.n_mels) for sound in sounds])
    encoded = iter(frames)
    n_frames = 0
    positions: list[tuple[int, int]] = []
    for segment in segments:
        if isinstance(segment, Audio):
            length = len(next(encoded))
            positions += [(AUDIO, n_frames + row) for row in range(length)]
            n_frames += length
        else:
            positions += [(SPEECH if isinstance(segment, Speech) else TEXT, id_) for id_ in segment.ids]
    kinds, ids = torch.tensor(list(chain(positions, written))).T[:, None]
    hidden, _ = model.hidden(model.assemble(kinds, ids, torch.cat(frames) if frames else None))
    said = hidden[0, len(positions) - 1 : -1]  # (written, dim): each chooses the id after it
    return [_best(model, row, kind == SPEECH) for row, (kind, _) in zip(said, written, strict=True)]


def _best(model: SpeechLLM, hidden: Tensor, is_speech: bool) -> int:
    logits = model.speech_logits(hidden) if is_speech else model.text_logits(hidden)
    return int(logits.argmax())
