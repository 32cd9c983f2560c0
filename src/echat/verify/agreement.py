"""Greedy agreement of a quantized model with the original: how often their best next ids are the same."""

from collections.abc import Iterable

import torch

from echat.dialogue.rendering import AudioSegment, Segment, SpeechSegment, TextSegment
from echat.dialogue.turns import Conversation
from echat.infer.audio_input import encode_audio, to_mel
from echat.infer.engine import Engine
from echat.infer.generation import head_logits
from echat.infer.prompt_cache import embed_prompt
from echat.model.speech_llm import SpeechLLM


def greedy_agreement(
    engine: Engine, other: SpeechLLM, dialogues: Iterable[tuple[Conversation, str]], seed: int = 0
) -> tuple[float, int]:
    """Share of positions at which the best id of `other` is that of the engine's model, and their number.

    `dialogues`: conversations to answer, each with its task. The engine generates the replies (sampled with
    `seed`); both models then read the same prompts and replies.
    """
    equal = total = 0
    for conversation, task in dialogues:
        segments = engine.render(conversation, task)
        reply = engine.run(conversation, task, seed=seed, speak=False)
        end, boundary = engine.vocabulary.text_end, engine.vocabulary.speech_boundary
        answer: list[TextSegment | SpeechSegment] = (
            [TextSegment((*reply.text_ids, end))] if reply.text_ids else []
        )
        if reply.speech_ids:
            answer.append(SpeechSegment((boundary, *reply.speech_ids, boundary)))
        first, second = (_best_ids(model, segments, answer) for model in (engine.model, other))
        equal += sum(a == b for a, b in zip(first, second, strict=True))
        total += len(first)
    return equal / max(total, 1), total


@torch.inference_mode()
def _best_ids(
    model: SpeechLLM, prompt: list[Segment], answer: list[TextSegment | SpeechSegment]
) -> list[int]:
    """The best id at every position of the answer, each after the true ids before it."""
    sounds = [segment.audio for segment in prompt if isinstance(segment, AudioSegment)]
    frames = encode_audio(model, [to_mel(sound, model.config.encoder.n_mels) for sound in sounds])
    hidden, _ = model.hidden(embed_prompt(model, [*prompt, *answer], frames))
    is_speech = [isinstance(segment, SpeechSegment) for segment in answer for _ in segment.ids]
    rows = hidden[0, -len(is_speech) - 1 : -1]  # each gives the id after it
    return [
        int(head_logits(model, row, speech).argmax()) for row, speech in zip(rows, is_speech, strict=True)
    ]
