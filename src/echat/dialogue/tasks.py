"""THE table of tasks: input, output, layout, prompts and decoding of each.

A new task is one row of ``_ROWS``. Profiles name a dialect of the same table: ``"echat"`` is ours, ``"osum"``
is what the released weights were trained with, ``"reference"`` repeats the reference's inference character
for character, slips included.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass, replace
from typing import Literal

from echat.dialogue.labels import LabelKind
from echat.dialogue.prompts import system_prompt, user_prompt

Profile = Literal["echat", "osum", "reference"]
Modality = Literal["audio", "text"]
Thinks = Literal["label", "language"]
Writes = Literal["text", "speech"]
Layout = Literal["sequential", "interleaved"]
TargetForm = Literal["composed", "finished", "answered", "reply", "read_text"]
"""What the text of a target is: words and labels, composed from the record; a text that the record brings
finished (as it cannot be composed); words, then a reply; a reply; the text that is read aloud."""


@dataclass(frozen=True)
class Sampling:
    """How the next id is chosen from the logits."""

    sample: bool = False
    """Sample at random; otherwise take the best (greedy)."""
    top_k: int = 0
    """Keep the k best (0: all)."""
    top_p: float = 1.0
    """Keep the smallest set of ids with this mass."""
    temperature: float = 1.0
    repetition_penalty: float = 1.0
    """Over generated ids only."""


@dataclass(frozen=True)
class DecodingDefaults:
    """Settings of one task: one rule per id space, and how long an answer may get."""

    text: Sampling = Sampling()
    speech: Sampling = Sampling()
    max_new_ids: int = 2000
    """Text and speech ids together."""
    constrain_age: bool = False
    """Force a known age after the age slot of a label thought, once per reply."""

    def with_sampling(self) -> DecodingDefaults:
        """The same with sampled text, so that another seed gives another text."""
        return self if self.text.sample else replace(self, text=_SAMPLED)


_SAMPLED = Sampling(sample=True, top_k=10, top_p=0.9, temperature=0.8)
_REFERENCE_UNDERSTANDING = DecodingDefaults(
    text=Sampling(sample=True, top_k=5, top_p=0.9, repetition_penalty=1.05), max_new_ids=8000
)
_REFERENCE_CHAT = DecodingDefaults(
    text=Sampling(sample=True, top_k=2, temperature=0.4, repetition_penalty=1.05), max_new_ids=8000
)
_REFERENCE_TTS = DecodingDefaults(speech=Sampling(sample=True, top_k=15, top_p=0.8, temperature=1.2))
_REFERENCE_T2T = DecodingDefaults(max_new_ids=200)
_REFERENCE_S2S = DecodingDefaults(
    text=Sampling(sample=True, top_k=10, top_p=0.9, temperature=1.2),
    speech=Sampling(sample=True, top_k=10, top_p=0.9, temperature=1.2),
    constrain_age=True,
)


@dataclass(frozen=True)
class Task:
    """One row of the table."""

    name: str
    tag: str
    """How released data name the task."""
    system: str
    """Name of the system prompt."""
    input_modality: Modality = "audio"
    thinks: Thinks | None = None
    writes: tuple[Writes, ...] = ("text",)
    layout: Layout = "sequential"
    prompt: str | None = None
    """Name of the user prompt."""
    transcribes: bool = False
    """Does the target begin with the user's words?"""
    labels: tuple[LabelKind, ...] = ()
    """Labels at the end of the target, in this order."""
    target: TargetForm = "reply"
    decoding: DecodingDefaults = DecodingDefaults()
    """Defaults of profile ``"echat"``."""
    reference_decoding: DecodingDefaults = _REFERENCE_UNDERSTANDING

    @property
    def understands(self) -> bool:
        """Is the target about the user's sound (and not a reply to it)?"""
        return self.system == "understand"

    @property
    def writes_only_words(self) -> bool:
        """Is the target the user's words and nothing else, but for times or punctuation?"""
        return self.transcribes and not self.labels and self.target != "answered"

    @property
    def writes_bare_words(self) -> bool:
        """Is the target the user's words and nothing else at all?"""
        return self.writes_only_words and self.target == "composed"

    @property
    def writes_label_target(self) -> bool:
        """Is the target words and labels, whether composed or brought by the record?"""
        return self.target in ("composed", "finished")

    @property
    def writes_speech(self) -> bool:
        return "speech" in self.writes

    @property
    def writes_text(self) -> bool:
        return "text" in self.writes

    @property
    def reads_aloud(self) -> bool:
        """Is the speech that of the words in the prompt?"""
        return self.target == "read_text"

    def decoding_for(self, profile: Profile) -> DecodingDefaults:
        """Decoding defaults; ``"osum"`` keeps the reference's, except that it understands greedily."""
        if profile == "echat" or (profile == "osum" and self.understands):
            return self.decoding
        return self.reference_decoding

    def system_for(self, profile: Profile) -> str:
        """System text."""
        if profile == "echat":
            return system_prompt(self.system, short=True)
        return system_prompt(
            "understand_reference" if self.understands and profile == "reference" else self.system
        )

    def prompt_for(self, profile: Profile) -> str | None:
        """Default instruction of the user turn; ``"echat"`` also names the form of a thought there."""
        if self.prompt is None or (profile != "echat" and not self.understands):
            return None
        return user_prompt(self.prompt, short=profile == "echat")


def _understand(
    name: str, tag: str, *labels: LabelKind, transcribes: bool = True, target: TargetForm = "composed"
) -> Task:
    return Task(
        name,
        tag,
        system="understand",
        prompt=name,
        transcribes=transcribes,
        labels=labels,
        target=target,
        decoding=DecodingDefaults(max_new_ids=500),
    )


def _speak(
    name: str,
    tag: str,
    system: str,
    thinks: Thinks | None = None,
    layout: Layout = "sequential",
) -> Task:
    return Task(
        name,
        tag,
        system=system,
        thinks=thinks,
        writes=("text", "speech"),
        layout=layout,
        prompt=f"think_{thinks}" if thinks else None,
        decoding=DecodingDefaults(speech=_SAMPLED),
        reference_decoding=_REFERENCE_S2S,
    )


def _answer(name: str, tag: str, system: str, thinks: Thinks | None = None) -> Task:
    return Task(
        name,
        tag,
        system=system,
        thinks=thinks,
        prompt=f"think_{thinks}" if thinks else None,
        decoding=DecodingDefaults(max_new_ids=500),
        reference_decoding=_REFERENCE_CHAT,
    )


_ROWS = (
    # understanding: the user's words and/or labels of the sound
    _understand("asr", "<TRANSCRIBE>"),
    _understand("asr_timestamps", "<TRANSCRIBE> <ALIGN>", target="finished"),
    _understand("asr_event", "<TRANSCRIBE> <CAPTION>", "sound_event"),
    _understand("asr_emotion", "<TRANSCRIBE> <EMOTION>", "emotion"),
    _understand("asr_style", "<TRANSCRIBE> <STYLE>", "style"),
    _understand("asr_gender", "<TRANSCRIBE> <GENDER>", "gender"),
    _understand("asr_age", "<TRANSCRIBE> <AGE>", "age"),
    _understand("asr_chat", "<TRANSCRIBE> <S2TCHAT>", target="answered"),
    _understand("age", "<AGE>", "age", transcribes=False),
    _understand("gender", "<GENDER>", "gender", transcribes=False),
    _understand("style", "<STYLE>", "style", transcribes=False),
    _understand("emotion", "<EMOTION>", "emotion", transcribes=False),
    _understand("event", "<CAPTION>", "sound_event", transcribes=False),
    _understand("asr_age_gender", "<TRANSCRIBE> <AGE> <GENDER>", "age", "gender"),
    _understand("age_gender", "<AGE> <GENDER>", "age", "gender", transcribes=False),
    _understand("asr_style_age_gender", "<TRANSCRIBE> <STYLE> <AGE> <GENDER>", "style", "age", "gender"),
    _understand("style_age_gender", "<STYLE> <AGE> <GENDER>", "style", "age", "gender", transcribes=False),
    _understand("asr_punctuation", "<TRANSCRIBE> <PUNCTUATION>", target="finished"),
    _understand(
        "asr_event_age_gender", "<TRANSCRIBE> <CAPTION> <AGE> <GENDER>", "sound_event", "age", "gender"
    ),
    _understand(
        "asr_emotion_age_gender", "<TRANSCRIBE> <EMOTION> <AGE> <GENDER>", "emotion", "age", "gender"
    ),
    _understand(
        "asr_age_gender_style_emotion",
        "<TRANSCRIBE> <AGE> <GENDER> <STYLE> <EMOTION>",
        "age",
        "gender",
        "style",
        "emotion",
    ),
    _understand(
        "understand",
        "<TRANSCRIBE> <EMOTION> <AGE> <GENDER> <CAPTION>",
        "emotion",
        "age",
        "gender",
        "sound_event",
    ),
    # replies to sound
    _answer("s2t", "<S2TCHAT>", "s2t"),
    _answer("s2t_think_label", "<S2TCHAT> <THINKER>", "s2t_think", "label"),
    _answer("s2t_think_language", "<S2TCHAT> <THINKER>", "s2t_think", "language"),
    _answer("s2t_fake", "<S2TCHAT_FAKE>", "s2s_think"),
    _speak("s2s", "<S2TCHAT> <TEXT2TOKEN>", "s2s"),
    _speak("s2s_think_label", "<S2TCHAT> <TEXT2TOKEN> <THINK>", "s2s_think", "label"),
    _speak("s2s_think_language", "<S2TCHAT> <TEXT2TOKEN> <THINK>", "s2s_think", "language"),
    _speak("s2s_stream", "<S2TCHAT> <TEXT2TOKEN> <STREAMING>", "s2s_stream", layout="interleaved"),
    # text in
    Task(
        "t2t",
        "<TEXT2TEXT>",
        system="t2t",
        input_modality="text",
        decoding=DecodingDefaults(max_new_ids=200),
        reference_decoding=_REFERENCE_T2T,
    ),
    Task(
        "tts",
        "<TEXT2TOKEN>",
        system="tts",
        input_modality="text",
        writes=("speech",),
        target="read_text",
        decoding=DecodingDefaults(speech=_SAMPLED),
        reference_decoding=_REFERENCE_TTS,
    ),
    Task(
        "tts_stream",
        "<TEXT2TOKEN> <STREAMING>",
        system="tts_stream",
        input_modality="text",
        writes=("text", "speech"),
        target="read_text",
        layout="interleaved",
        decoding=DecodingDefaults(speech=_SAMPLED),
        reference_decoding=_REFERENCE_TTS,
    ),
)

TASKS: dict[str, Task] = {task.name: task for task in _ROWS}

_TAG_ALIASES = {
    "TEXT2TOKEN": "<TEXT2TOKEN>",
    "<Speech2TEXTandTOKEN>": "<S2TCHAT> <TEXT2TOKEN>",
    "<S2TCHAT> <TEXT2TOKEN> <EMOTION>": "<S2TCHAT> <TEXT2TOKEN>",
    "<S2TCHAT> <TEXT2TOKEN> <HISTORY>": "<S2TCHAT> <TEXT2TOKEN>",
    "<CAPTION> <AUDIO>": "<CAPTION>",
}


def get_task(task: str | Task) -> Task:
    """The row of that name; a row passes through."""
    if isinstance(task, Task):
        return task
    if task not in TASKS:
        near = difflib.get_close_matches(task, TASKS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"task: expected one of {', '.join(TASKS)}, found {task!r}{hint}")
    return TASKS[task]


def reply_task(think: str, speaks: bool) -> str:
    """The name of the task that answers speech; ``think`` is ``"off"`` or the form of the thought."""
    return ("s2s" if speaks else "s2t") + ("" if think == "off" else f"_think_{think}")


def task_for_tag(tag: str, thinks: Thinks = "language") -> Task:
    """The row for a data tag such as ``<TRANSCRIBE> <EMOTION>``; ``thinks`` picks between two rows of it."""
    wanted = _TAG_ALIASES.get(tag, tag)
    rows = [task for task in _ROWS if task.tag == wanted and task.thinks in (None, thinks)]
    if not rows:
        tags = ", ".join(dict.fromkeys(task.tag for task in _ROWS))
        raise ValueError(f"task tag: expected one of {tags}; found {tag!r}")
    return rows[0]
