"""Decoding rules and the generation state of one reply: which head is next, constraints, stop conditions.

`GenerationState` does not depend on models or caches, so the cached, the batched and the slow uncached loops
all drive the same one.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from echat.audio.speech_tokens import SPEECH_TOKEN_RATE
from echat.dialogue.interleaving import is_speech_next
from echat.dialogue.tasks import DecodingDefaults, Profile, Task
from echat.dialogue.vocabulary import Vocabulary
from echat.infer import sampling
from echat.infer.ctc_decoding import CTCQuoteProcessor
from echat.infer.sampling import LabelSlot, LoopGuard, RepeatGuard

FinishReason = Literal["end", "length", "loop", "cancelled"]

# Limits against runaway speech, which the reference lacks. A spoken text id takes about 6 speech ids;
# silence may last.
GUARD_RUN = 15  # the same id in a row: 0.6 s
GUARD_WINDOW, GUARD_COUNT = 40, 30
LOOP_LENGTHS = range(2, 26)  # ids in a repeated stretch: up to 1 s
LOOP_TIMES = 5
SPEECH_IDS_BASE, SPEECH_IDS_PER_TEXT_ID = 100, 30


@dataclass(frozen=True)
class DecodingRules:
    """The generation config of one reply: its task, sampling, constraints and limits."""

    task: Task
    vocabulary: Vocabulary
    decoding: DecodingDefaults
    slots: tuple[LabelSlot, ...] = ()  # of a thought in labels
    speech_guard: RepeatGuard | None = None  # of speech
    text_guard: LoopGuard | None = None
    force_boundary: bool = False  # speech begins with the boundary without asking the model
    limit_speech: bool = False  # stop speech that runs far longer than its text, or in circles
    read_aloud: int = 0  # text ids in the prompt that the reply speaks (reading aloud)
    drops_last_text_id: bool = False  # the reference loses the last id of a text before speech

    @classmethod
    def make(
        cls,
        task: Task,
        vocabulary: Vocabulary,
        profile: Profile,
        decoding: DecodingDefaults | None = None,
        read_aloud: int = 0,
    ) -> "DecodingRules":
        """The rules of a profile: of the reference unchanged; the others have guards against its failures.

        The reference forces an age after any text that looks like the age slot; a slot is in label thoughts
        alone. Models of this package fill every slot with a label of its kind: slots that are unknown in the
        training data have no loss, so the model might generate anything there.
        """
        decoding = decoding or task.decoding_for(profile)
        ours = profile != "reference"
        thinks = task.thinks == "label"
        slots = list(vocabulary.label_slots) if thinks and profile == "echat" else []
        if decoding.constrain_age and (thinks or not ours):
            slots.append((vocabulary.age_trigger, vocabulary.age_allowed))
        speech_guard = RepeatGuard(vocabulary.codec_size, GUARD_RUN, GUARD_WINDOW, GUARD_COUNT)
        return cls(
            task,
            vocabulary,
            decoding,
            slots=tuple(LabelSlot(*slot) for slot in slots if all(slot)),
            speech_guard=speech_guard if ours else None,
            text_guard=LoopGuard() if ours else None,
            force_boundary=ours and task.writes_text,
            limit_speech=ours,
            read_aloud=read_aloud,
            drops_last_text_id=not ours and task.writes_speech,
        )


@dataclass
class GenerationState:
    """The ids of one reply so far, and why it ended. Local to a call."""

    rules: DecodingRules
    generator: torch.Generator | None = None
    quote_processor: CTCQuoteProcessor | None = None  # where the reply quotes the question
    ids: list[int] = field(default_factory=list)  # both id spaces, in order, as generated
    is_speech: list[bool] = field(default_factory=list)  # which space each id is of
    text_ids: list[int] = field(default_factory=list)  # without the text end
    speech_ids: list[int] = field(default_factory=list)  # with boundaries
    finish_reason: FinishReason | None = None
    text_ended: bool = False
    _filled_slots: set[LabelSlot] = field(default_factory=set)  # slots that are filled

    @property
    def next_is_speech(self) -> bool:
        """Does the next id come from the speech head, or from the text head?"""
        task = self.rules.task
        if not task.writes_text:
            return True
        if task.layout == "interleaved":
            return is_speech_next(len(self.text_ids), len(self.speech_ids), self.text_ended)
        return self.text_ended

    def next_id(self, logits: Tensor) -> int:
        """Choose from the logits of the head that `next_is_speech` names, and record the id."""
        chosen = self._choose_speech(logits) if self.next_is_speech else self._choose_text(logits)
        self.push(chosen)
        return chosen

    def _choose_text(self, logits: Tensor) -> int:
        rule = self.rules.decoding.text
        logits = sampling.penalise_repeats(logits, self.ids, rule.repetition_penalty)
        for slot in self.rules.slots:
            if slot not in self._filled_slots and slot.matches(self.ids):
                self._filled_slots.add(slot)
                logits = slot.constrain(logits)
        if self.rules.text_guard is not None:
            logits = self.rules.text_guard.constrain(logits, self.text_ids)
        if self.quote_processor is not None:
            logits = self.quote_processor.constrain(logits, self.text_ids)
        return sampling.choose(logits, rule, self.generator)

    def _choose_speech(self, logits: Tensor) -> int:
        rule, rules = self.rules.decoding.speech, self.rules
        if rules.force_boundary and not self.speech_ids:
            return rules.vocabulary.speech_boundary
        logits = sampling.penalise_repeats(logits, self.speech_ids, rule.repetition_penalty)
        if rules.speech_guard is not None:
            logits = rules.speech_guard.constrain(logits, self.speech_ids)
        return sampling.choose(logits, rule, self.generator)

    def push(self, chosen: int) -> None:
        """Record an id, however it was chosen."""
        is_speech, vocabulary = self.next_is_speech, self.rules.vocabulary
        self.ids.append(chosen)
        self.is_speech.append(is_speech)
        if is_speech:
            self.speech_ids.append(chosen)
        elif chosen == vocabulary.text_end:
            self.text_ended = True
        else:
            self.text_ids.append(chosen)
        self.finish_reason = self._finished(chosen, is_speech)

    def _finished(self, chosen: int, is_speech: bool) -> FinishReason | None:
        rules = self.rules
        if is_speech and chosen == rules.vocabulary.speech_boundary:
            in_prompt = 0 if rules.task.writes_text else 1  # a task without text has the first there
            if self.speech_ids.count(chosen) + in_prompt > 1:
                return "end"
        if not is_speech and self.text_ended and not rules.task.writes_speech:
            return "end"
        if len(self.ids) >= rules.decoding.max_new_ids:
            return "length"
        if is_speech and rules.limit_speech:
            return self._stop_runaway()
        return None

    def _stop_runaway(self) -> FinishReason | None:
        read = len(self.text_ids) or self.rules.read_aloud
        if read and len(self.speech_ids) > SPEECH_IDS_BASE + SPEECH_IDS_PER_TEXT_ID * read:
            return "length"
        if len(self.speech_ids) % SPEECH_TOKEN_RATE == 0 and any(
            sampling.is_looping(self.speech_ids, length, LOOP_TIMES) for length in LOOP_LENGTHS
        ):
            return "loop"
        return None

    @property
    def visible_text_ids(self) -> list[int]:
        """Ids of the text generated so far, as it is shown."""
        return self.text_ids[:-1] if self.rules.drops_last_text_id else self.text_ids

    @property
    def codec_ids(self) -> list[int]:
        """The speech ids without boundaries: those to synthesize."""
        boundary = self.rules.vocabulary.speech_boundary
        return [id_ for id_ in self.speech_ids if id_ != boundary]


@dataclass
class ForcedDecoding(GenerationState):
    """Forced decoding (teacher forcing): appends given ids, and records what would have been chosen."""

    forced_ids: Sequence[int] = ()
    free_choices: list[int] = field(default_factory=list)

    def next_id(self, logits: Tensor) -> int:
        self.free_choices.append(
            self._choose_speech(logits) if self.next_is_speech else self._choose_text(logits)
        )
        self.push(self.forced_ids[len(self.ids)])
        if len(self.ids) == len(self.forced_ids):
            self.finish_reason = self.finish_reason or "length"
        return self.ids[-1]
