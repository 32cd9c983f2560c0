"""The prompt layout: conversation + task → segments, for training, inference, serving and evaluation alike.

With SYS the system turn, U the user start, A the audio between its markers, P2 the change of turn and S the
speech between its boundaries; the loss covers what is in brackets:

    SYS (U A P2 text end S end-of-turn)*  U prompt A P2 [thought text end S]

The inference prompt is the part before the bracket, so it is a prefix of the training sequence by
construction. Where the answer can only begin with the speech boundary (reading aloud), the prompt includes
it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from echat.dialogue.interleaving import interleave
from echat.dialogue.labels import UNKNOWN_TAG, LabelKind, Labels, describe_voice, tag
from echat.dialogue.tasks import Profile, Task, get_task
from echat.dialogue.thinking import LabelThought, LanguageThought, format_reply, unknown_slots
from echat.dialogue.turns import AssistantTurn, Conversation, UserTurn
from echat.dialogue.understanding import format_understanding
from echat.dialogue.vocabulary import UNKNOWN, Tokenizer, Vocabulary

REFERENCE_HISTORY_TURNS = 5


@dataclass(frozen=True)
class TextSegment:
    """Ids of the text table."""

    ids: tuple[int, ...]
    is_target: bool = False


@dataclass(frozen=True)
class SpeechSegment:
    """Rows of the speech table: codec ids, boundary, markers around the user's audio."""

    ids: tuple[int, ...]
    is_target: bool = False


@dataclass(frozen=True)
class AudioSegment:
    """Audio of the user, as the caller put it into the turn; only the encoder knows its length."""

    audio: Any
    is_target: bool = False


Segment = TextSegment | SpeechSegment | AudioSegment
LabelGuess = Callable[[LabelKind], str]


def render(
    conversation: Conversation,
    task: str | Task,
    tokenizer: Tokenizer,
    vocabulary: Vocabulary,
    profile: Profile = "echat",
    guess: LabelGuess | None = None,
) -> list[Segment]:
    """Inference prompt when the user spoke last, training sequence when the assistant did.

    `guess` gives a label, without a loss on it, where one of the target is unknown: a model that generates
    freely always writes a label there, so training has to continue after one.
    """
    renderer = _Renderer(get_task(task), tokenizer, vocabulary, profile, guess)
    prompt = list(renderer.prompt(conversation))
    if conversation.target is None:
        return prompt + renderer.given_begin()
    return prompt + list(renderer.target(conversation.question, conversation.target))


def target_text(question: UserTurn, answer: AssistantTurn, task: str | Task) -> str:
    """The target text of a task, without the text end."""
    task = get_task(task)
    if task.understands:
        if answer.text is not None and task.writes_label_target:
            return answer.text
        return format_understanding(task, question.text, question.labels, answer.text)
    if task.reads_aloud:
        return _need(question.text, task, "the text to read", "UserTurn(text=...)")
    reply = _need(answer.text, task, "a reply", "AssistantTurn(text=...)")
    if task.thinks is None:
        return reply
    form = LabelThought if task.thinks == "label" else LanguageThought
    if not isinstance(answer.thought, form):
        raise ValueError(
            f"task {task.name}: expected a thought in {task.thinks} form, found {answer.thought!r}; "
            f"give AssistantTurn(thought={form.__name__}(...))"
        )
    return format_reply(answer.thought, reply)


def pseudo_audio_text(text: str | None, labels: Labels | None) -> str:
    """Labels and words as text instead of audio, e.g. ``"sad adult female cough:i lost my keys"``.

    Without a blank before the words, so that they have the same ids as in a transcript.
    """
    description = describe_voice(labels or Labels())
    return ":".join(part for part in (description, text) if part)


def plain_ids(segments: Sequence[Segment]) -> list[tuple[str, Any]]:
    """Flat ``("text" | "speech", id)`` and ``("audio", audio)`` pairs, whatever the cuts between segments."""
    flat: list[tuple[str, Any]] = []
    for segment in segments:
        if isinstance(segment, AudioSegment):
            flat.append(("audio", segment.audio))
        else:
            kind = "text" if isinstance(segment, TextSegment) else "speech"
            flat.extend((kind, id_) for id_ in segment.ids)
    return flat


@dataclass(frozen=True)
class _Renderer:
    task: Task
    tokenizer: Tokenizer
    vocabulary: Vocabulary
    profile: Profile
    guess: LabelGuess | None = None

    # --- prompt ---

    def prompt(self, conversation: Conversation) -> Iterator[Segment]:
        template, system = self.vocabulary.template, self.task.system_for(self.profile)
        yield self._text(template.begin + template.turn_of(template.system) + system + template.turn_close)
        if self.profile == "reference":
            for user, assistant in conversation.history[-REFERENCE_HISTORY_TURNS:]:
                yield from self._reference_history_turn(user, assistant)
        else:
            for user, assistant in conversation.history:
                yield from self._history_turn(user, assistant)
        if not (self.profile == "reference" and self.task.system == "s2t_think"):
            yield self._user_start()
        yield from self._instruction(conversation.question)
        yield from self._user(conversation.question, is_history=False)
        yield self._turn_change()

    def given_begin(self) -> list[Segment]:
        """What the answer must begin with, where only one id is possible."""
        if self.task.writes_text:
            return []
        return [SpeechSegment((self.vocabulary.speech_boundary,))]

    def _history_turn(self, user: UserTurn, assistant: AssistantTurn) -> Iterator[Segment]:
        yield self._user_start()
        if user.prompt:
            yield self._text(user.prompt)
        yield from self._user(user, is_history=True)
        yield self._turn_change()
        yield TextSegment((*self._said(assistant), self.vocabulary.text_end))
        if assistant.speech_ids:
            yield SpeechSegment(self._spoken(assistant))
            yield self._text(self.vocabulary.template.turn_close)
        else:
            yield self._text(self.vocabulary.template.turn_gap)

    def _reference_history_turn(self, user: UserTurn, assistant: AssistantTurn) -> Iterator[Segment]:
        """The reference omits user start, last text id, text end and turn end; speech is as generated."""
        yield from self._user(user, is_history=True)
        yield self._turn_change()
        yield TextSegment(self._said(assistant)[:-1])
        if assistant.raw_speech_ids is not None:
            yield SpeechSegment(self._speech_rows(assistant.raw_speech_ids, self.vocabulary.speech_boundary))
        elif assistant.speech_ids:
            yield SpeechSegment(self._spoken(assistant))

    def _instruction(self, question: UserTurn) -> Iterator[Segment]:
        if self.task.input_modality == "text" or (self.profile == "reference" and not self.task.understands):
            return
        prompt = self.task.prompt_for(self.profile) if question.prompt is None else question.prompt
        if prompt:
            yield self._text(prompt)

    def _user(self, turn: UserTurn, is_history: bool) -> Iterator[Segment]:
        typed = self.task.input_modality == "text" or (
            is_history and turn.audio is None and not turn.is_pseudo_audio
        )
        if typed and turn.text is not None:
            yield self._text(turn.text)
        elif turn.audio is None and not turn.is_pseudo_audio:
            wanted = (
                "text, found none"
                if self.task.input_modality == "text"
                else "a user turn with audio, found text only"
            )
            raise ValueError(
                f"task {self.task.name}: expected {wanted}; "
                f"give UserTurn({self.task.input_modality}=...) or choose another task"
            )
        elif self.task.input_modality == "text" and not is_history:
            raise ValueError(
                f"task {self.task.name}: expected text, found audio only; choose a task with audio input"
            )
        else:
            yield SpeechSegment((self.vocabulary.user_audio_begin,))
            yield (
                self._text(pseudo_audio_text(turn.text, turn.labels))
                if turn.is_pseudo_audio
                else AudioSegment(turn.audio)
            )
            yield SpeechSegment((self.vocabulary.user_audio_end,))

    # --- target ---

    def target(self, question: UserTurn, answer: AssistantTurn) -> Iterator[Segment]:
        if self.task.layout == "interleaved":
            yield from self._interleaved(target_text(question, answer, self.task), answer)
            return
        if self.task.writes_text:
            text = target_text(question, answer, self.task)
            yield from self._with_guesses(text, question, answer) or self._with_holes(text)
        if self.task.writes_speech:
            yield SpeechSegment(self._spoken(answer), is_target=True)

    def _interleaved(self, text: str, answer: AssistantTurn) -> Iterator[Segment]:
        ids = [*self._encode(text), self.vocabulary.text_end]
        for chunk in interleave(ids, self._spoken(answer)):
            yield (SpeechSegment if chunk.is_speech else TextSegment)(chunk.ids, is_target=True)

    def _with_guesses(self, text: str, question: UserTurn, answer: AssistantTurn) -> list[Segment]:
        """Target text and its end with a guess in every hole, which has no loss.

        Nothing where there is no hole, or where ids would run across the edge of one.
        """
        kinds = self._unknown(question, answer) if self.guess else []
        pieces = text.split(UNKNOWN)
        if self.guess is None or not kinds or len(pieces) != len(kinds) + 1:
            return []
        words = [tag(kind, self.guess(kind))[1:-1] for kind in kinds]
        parts = [part for pair in zip(pieces, [*words, ""]) for part in pair][:-1]
        ids = [self._encode(part) for part in parts]
        if sum(ids, ()) != self._encode("".join(parts)):
            return []
        ids[-1] = (*ids[-1], self.vocabulary.text_end)
        return [TextSegment(part, is_target=number % 2 == 0) for number, part in enumerate(ids)]

    def _unknown(self, question: UserTurn, answer: AssistantTurn) -> list[LabelKind]:
        """Kinds of the labels that the target leaves open, in the order written."""
        if isinstance(answer.thought, LabelThought) and self.task.thinks:
            return unknown_slots(answer.thought)
        known = question.labels or Labels()
        return [kind for kind in self.task.labels if getattr(known, kind) is None]

    def _with_holes(self, text: str) -> Iterator[Segment]:
        """Target text and its end. Unknown labels are holes: input ids without a loss.

        The reference hides them from attention instead, and so predicts what follows a hole from a padding
        slot; the end that it leaves out after a final hole is left out for its weights here too.
        """
        ids = list(self._encode_target(text))
        if self.profile == "echat" or not text.endswith(UNKNOWN_TAG):
            ids.append(self.vocabulary.text_end)
        start = 0
        for position, id_ in enumerate(ids):
            if id_ == self.vocabulary.unknown:
                if position > start:
                    yield TextSegment(tuple(ids[start:position]), is_target=True)
                yield TextSegment((id_,))
                start = position + 1
        if start < len(ids):
            yield TextSegment(tuple(ids[start:]), is_target=True)

    def _encode_target(self, text: str) -> tuple[int, ...]:
        """Ids in which each unknown placeholder is one id, even where byte-pair merges would swallow it."""
        ids = self._encode(text)
        unknown = self.vocabulary.unknown
        holes = text.count(UNKNOWN)
        if holes == 0 or (unknown is not None and ids.count(unknown) == holes):
            return ids
        if unknown is None:
            raise ValueError(
                f"target {text!r}: expected a vocabulary with an id for {UNKNOWN!r} (unknown label), "
                f"found none; add {UNKNOWN!r} to the tokenizer or give every label"
            )
        pieces = [self._encode(piece) for piece in text.split(UNKNOWN)]
        return tuple(id_ for n, piece in enumerate(pieces) for id_ in ((unknown,) if n else ()) + piece)

    # --- pieces ---

    def _encode(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer.encode(text, add_special_tokens=False)) if text else ()

    def _text(self, text: str) -> TextSegment:
        return TextSegment(self._encode(text))

    def _user_start(self) -> TextSegment:
        template = self.vocabulary.template
        return self._text(template.turn_of(template.user))

    def _turn_change(self) -> TextSegment:
        template = self.vocabulary.template
        return self._text(template.turn_close + template.turn_of(template.assistant))

    def _said(self, turn: AssistantTurn) -> tuple[int, ...]:
        if turn.text_ids is not None:
            return tuple(turn.text_ids)
        return self._encode(turn.text or "")

    def _spoken(self, turn: AssistantTurn) -> tuple[int, ...]:
        if turn.speech_ids is None:
            raise ValueError(
                f"task {self.task.name}: expected speech ids in the assistant turn, found none; "
                "give AssistantTurn(speech_ids=...)"
            )
        boundary = self.vocabulary.speech_boundary
        return (boundary, *self._speech_rows(turn.speech_ids, boundary - 1), boundary)

    @staticmethod
    def _speech_rows(ids: Sequence[int], largest: int) -> tuple[int, ...]:
        for position, id_ in enumerate(ids):
            if not 0 <= id_ <= largest:
                raise ValueError(
                    f"speech_ids: expected ids in 0..{largest}, found {id_} at position {position}; begin "
                    "and end belong to raw_speech_ids alone, strip them elsewhere"
                )
        return tuple(int(id_) for id_ in ids)


def _need(text: str | None, task: Task, what: str, how: str) -> str:
    if text is None:
        raise ValueError(f"task {task.name}: expected {what}, found none; give {how}")
    return text
