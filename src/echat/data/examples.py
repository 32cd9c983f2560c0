"""Training examples of the speech LLM: audio loaded, augmented, turned into mel; the dialogue rendered.

All randomness comes from the seed of the sampled item, so an example depends on nothing but the recipe's seed
and its position in the data.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from echat.audio.augmentation import AugmentConfig
from echat.audio.features import EncoderInput
from echat.data.audio_loading import AudioLoader, extract_mel
from echat.data.conversation import build_conversation
from echat.data.defects import DefectKind
from echat.data.eligibility import FilterConfig, can_serve, refusal, refuse_length, refuse_speech
from echat.data.mixture import SampledItem
from echat.data.sample import AudioRef, Sample
from echat.dialogue.labels import VALUES, LabelKind
from echat.dialogue.rendering import (
    AudioSegment,
    Segment,
    SpeechSegment,
    TextSegment,
    pseudo_audio_text,
    render,
)
from echat.dialogue.tasks import Profile, Task, get_task
from echat.dialogue.vocabulary import AUDIO, IGNORE, SPEECH, TEXT, Tokenizer, Vocabulary

BLANK_INSERTION_PROBABILITY = 0.6  # share of pseudo-audio texts that get blanks, if any do
MEL_FRAMES_PER_POSITION = 4  # mel frames that cost about as much as one position of the language model


class CachedTokenizer:
    """A tokenizer with a cache: prompts and corpus texts repeat every epoch."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._cache: dict[str, list[int]] = {}

    def encode(self, text: str, *, add_special_tokens: bool = False) -> list[int]:
        ids = self._cache.get(text)
        if ids is None:
            ids = self._cache[text] = self._tokenizer.encode(text, add_special_tokens=add_special_tokens)
        return ids

    def decode(self, ids: Any, /) -> str:
        return self._tokenizer.decode(ids)

    def __len__(self) -> int:
        return len(self._tokenizer)


@dataclass(frozen=True, slots=True)
class CTCTarget:
    """CTC target of a sound: its labels and words as text ids."""

    ids: tuple[int, ...] = ()  # labels, then words
    label_len: int = 0  # number of label ids in front
    has_transcript: bool = False  # False: the ids are labels alone, the words unknown


@dataclass(frozen=True, slots=True)
class DialogueExample:
    """One dialogue, rendered: what stands at each position and what the position must predict."""

    key: str
    task: str
    kinds: np.ndarray  # (length,) PAD, TEXT, SPEECH or AUDIO
    ids: np.ndarray  # (length,) text id or speech row; 0 at audio positions
    labels: (
        np.ndarray
    )  # (length,) class the position predicts: text id, or speech id + text_size; IGNORE = none
    mels: tuple[np.ndarray, ...]  # in the order of the turns, (frames, n_mels) each
    writes_speech: bool  # are the classes the combined ones of both heads?
    ctc_targets: tuple[CTCTarget, ...] = ()  # per clip; empty where no CTC is trained

    @property
    def sizes(self) -> tuple[int, int]:
        """Positions of the language model, and the work of the encoder in the same unit."""
        return len(self.ids), sum(len(mel) for mel in self.mels) // MEL_FRAMES_PER_POSITION


@dataclass
class DialogueBuilder:
    """SampledItem -> DialogueExample."""

    tokenizer: Tokenizer
    vocabulary: Vocabulary
    audio_loader: AudioLoader
    encoder: EncoderInput  # whose mel bins and frame rate the sound gets
    profile: Profile = "echat"
    augment: AugmentConfig | None = None
    max_positions: int = 2000  # longer dialogues are refused
    ctc_languages: tuple[str, ...] = ()  # speech in these languages also comes with its words as text ids
    blanks_per_id: float = (
        0.0  # pseudo-audio text: mean count of blanks before each id, as in CTC posteriors of sound
    )
    blank: int = 0  # id of the blank
    loss_on_input: bool = False  # pseudo-audio text is a target, too, where it has no blanks
    filters: FilterConfig = field(default_factory=FilterConfig)

    def __call__(self, item: SampledItem) -> DialogueExample:
        """Raises DataError or AudioError for a record that cannot be trained on."""
        task = get_task(item.task)
        sample = item.sample
        self._refuse(item, task)
        rng = np.random.default_rng(item.seed)
        has_audio_input = task.input_modality == "audio" and not item.pseudo_audio
        past = [self._mel(sample, turn.audio, rng) if has_audio_input else None for turn in sample.history]
        audio = self._mel(sample, sample.audio, rng) if has_audio_input else None
        conversation = build_conversation(sample, task, audio, past, item.pseudo_audio)
        random_label = partial(_random_label, rng) if self.profile == "echat" else None
        segments = render(conversation, task, self.tokenizer, self.vocabulary, self.profile, random_label)
        if item.pseudo_audio and self.blanks_per_id and rng.random() < BLANK_INSERTION_PROBABILITY:
            segments = self._map_audio_text(segments, lambda text: self._insert_blanks(text, rng))
        elif item.pseudo_audio and self.loss_on_input and sample.reply:
            segments = self._map_audio_text(segments, lambda text: replace(text, is_target=True))
        example = flatten_segments(segments, sample.key, task, self.vocabulary, self.encoder)
        if len(example.ids) > self.max_positions:
            raise refusal(
                sample,
                DefectKind.TOO_LONG,
                f"task {task.name}: expected at most {self.max_positions} positions, found "
                f"{len(example.ids)}; raise data.max_positions or leave the record out",
            )
        if self.ctc_languages and audio is not None:
            unknown = (CTCTarget(),) * (len(example.mels) - 1)  # clips of earlier turns
            example = replace(example, ctc_targets=(*unknown, self._ctc_target(sample)))
        return example

    def _refuse(self, item: SampledItem, task: Task) -> None:
        """Raise DataError for a record that lacks what the task needs or that a filter refuses."""
        if not can_serve(item.sample, task, item.pseudo_audio):
            reason = f"task {task.name}: expected its input and target, found some of it missing"
            raise refusal(item.sample, DefectKind.UNWANTED, reason)
        refuse_speech(item.sample, task, self.vocabulary.codec_size, self.filters)

    def _map_audio_text(
        self, segments: Sequence[Segment], change: Callable[[TextSegment], TextSegment]
    ) -> list[Segment]:
        """The segments, the text between the markers of the user's sound changed."""
        marker = SpeechSegment((self.vocabulary.user_audio_begin,))
        return [
            change(segment) if isinstance(segment, TextSegment) and before == marker else segment
            for before, segment in zip([None, *segments], segments)
        ]

    def _insert_blanks(self, text: TextSegment, rng: np.random.Generator) -> TextSegment:
        """The text with blanks at random between its ids."""
        gaps = rng.geometric(1.0 / (1.0 + self.blanks_per_id), size=len(text.ids) + 1) - 1
        ids: list[int] = []
        for gap, id_ in zip(gaps, text.ids):
            ids += [self.blank] * int(gap) + [id_]
        return TextSegment((*ids, *[self.blank] * int(gaps[-1])))

    def _ctc_target(self, sample: Sample) -> CTCTarget:
        """The ids that pseudo-audio text would have instead of this sound.

        In languages without CTC only the labels are known.
        """
        label_ids = self._ids(pseudo_audio_text(None, sample.labels))
        if sample.language not in (None, *self.ctc_languages):
            return CTCTarget(label_ids, len(label_ids))
        ids = self._ids(pseudo_audio_text(sample.text, sample.labels))
        apart = ids[: len(label_ids)] == label_ids  # or a tokenizer wrote label and word as one id
        return CTCTarget(ids, len(label_ids) if apart else 0, bool(ids))

    def _ids(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer.encode(text, add_special_tokens=False)) if text else ()

    def _mel(self, sample: Sample, ref: AudioRef | None, rng: np.random.Generator) -> np.ndarray | None:
        if ref is None:
            return None
        waveform = self.audio_loader.read(ref)
        refuse_length(sample, ref, len(waveform), self.filters)
        return extract_mel(waveform, self.encoder.n_mels, self.augment, rng)


def _random_label(rng: np.random.Generator, kind: LabelKind) -> str:
    """A label at random, as input where the true one is unknown."""
    return VALUES[kind][int(rng.integers(len(VALUES[kind])))]


def flatten_segments(
    segments: Sequence[Segment], key: str, task: Task, vocabulary: Vocabulary, encoder: EncoderInput
) -> DialogueExample:
    """Segments as one contiguous sequence; the label of a position is the next id, if that is a target."""
    kinds: list[int] = []
    ids: list[int] = []
    classes: list[int] = []
    mels: list[np.ndarray] = []
    for segment in segments:
        if isinstance(segment, AudioSegment):
            count = encoder.llm_frames(len(segment.audio))
            mels.append(segment.audio)
            kinds += [AUDIO] * count
            ids += [0] * count
            classes += [IGNORE] * count
            continue
        is_text = isinstance(segment, TextSegment)
        kinds += [TEXT if is_text else SPEECH] * len(segment.ids)
        ids += segment.ids
        if not segment.is_target:
            classes += [IGNORE] * len(segment.ids)
        elif is_text:
            classes += segment.ids
        else:
            classes += [id_ + vocabulary.text_size for id_ in segment.ids]
    return DialogueExample(
        key=key,
        task=task.name,
        kinds=np.array(kinds, np.int64),
        ids=np.array(ids, np.int64),
        labels=np.array([*classes[1:], IGNORE], np.int64),
        mels=tuple(mels),
        writes_speech=task.writes_speech,
    )
