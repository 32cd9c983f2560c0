"""Joint decoding of the user's words: by what the sound spells, and by what the language model expects.

The frames of a model that was trained to spell (CTC over its text table, `train/objectives/dialogue_loss`)
say which ids they hold. Where a reply quotes the user, each id is chosen by both: the language model, which
knows how people talk, and the probability that the sound goes on with this id (Watanabe et al. 2017, "Hybrid
CTC/attention architecture"): `transcribing` searches, `ctc_prefix` knows the sound.

Legend: D frames of the sound, dim their width, V text ids.
"""

import threading
from collections.abc import Sequence
from functools import cached_property
from itertools import groupby

import numpy as np
import torch
from torch import Tensor

from echat.dialogue.tasks import Task
from echat.dialogue.thinking import QUOTE_IN_LABELS, QUOTE_IN_LANGUAGE, THINK_BEGIN
from echat.dialogue.vocabulary import END_OF_DOCUMENT
from echat.infer.ctc_prefix import Prefix
from echat.infer.transcribing import Read, transcribe
from echat.model.llm import KVCache
from echat.model.speech_llm import SpeechLLM
from echat.model.spelling import row_lengths, spelled_scores
from echat.model.text_tokenizer import TextTokenizer


class Spelling:
    """The tables that all sounds of one model share."""

    def __init__(self, model: SpeechLLM, tokenizer: TextTokenizer) -> None:
        self._model, self._tokenizer = model, tokenizer
        self.blank = tokenizer.encode(END_OF_DOCUMENT)[0]
        self._cues_end = tokenizer.encode(":")[-1]

    @cached_property
    def is_word(self) -> np.ndarray:
        """(V,) Which ids hold nothing but letters, digits, apostrophes and blanks."""
        texts = (self.text_of([id_]) for id_ in range(self._model.config.llm.vocab_size))
        return np.array([bool(text) and all(c.isalnum() or c in "' " for c in text) for text in texts])

    @cached_property
    def _lengths(self) -> Tensor:
        """(V,) of the rows of the text table."""
        return row_lengths(self._model.llm.text_embedding.weight)

    def ids_of(self, text: str) -> list[int]:
        """Text as ids."""
        return self._tokenizer.encode(text)

    def text_of(self, ids: Sequence[int]) -> str:
        """Ids as text."""
        return self._tokenizer.decode(ids)

    def listener(
        self, frames: Tensor, task: Task, read: Read, cancel: threading.Event | None = None
    ) -> "Listener | None":
        """For a reply to the sound of these frames (D, dim); None where the task does not quote the user.

        `read` reads the prompt and what was written; once `cancel` is set, nothing more is searched.
        """
        quote = _quote(task)
        if quote is None or not len(frames):
            return None
        table = self._model.llm.text_embedding.weight
        scores = spelled_scores(frames, table, self._lengths)
        log_probs = scores.log_softmax(dim=-1).double().cpu().numpy()
        prefix = Prefix.of(log_probs, self.blank).after(self._cues(log_probs))
        return Listener(self, prefix, quote, read, cancel)

    def transcribe(
        self, place: tuple[Tensor, KVCache], prefix: Prefix, cancel: threading.Event | None
    ) -> tuple[int, ...]:
        """The ids of the words at a place of a reply; see `transcribing.transcribe`."""
        return transcribe(self._model, place, prefix, self.is_word, cancel)

    def _cues(self, log_probs: np.ndarray) -> list[int]:
        """What the best path spells before the words: cues and a colon, or nothing."""
        best = [id_ for id_, _ in groupby(log_probs.argmax(axis=1).tolist()) if id_ != self.blank]
        return best[: best.index(self._cues_end) + 1] if self._cues_end in best else []


def _quote(task: Task) -> str | None:
    """What stands before the user's words in a reply; None where they are not written."""
    if task.hears != "audio":
        return None
    if task.understands:
        return "" if task.transcribes else None
    quotes = {"label": THINK_BEGIN + QUOTE_IN_LABELS, "language": QUOTE_IN_LANGUAGE}
    return quotes.get(task.thinks or "")


class Listener:
    """Writes what a reply quotes, and has no say in the rest. Local to that reply."""

    def __init__(
        self, spelling: Spelling, prefix: Prefix, quote: str, read: Read, cancel: threading.Event | None
    ) -> None:
        self._spelling, self._prefix, self._read, self._cancel = spelling, prefix, read, cancel
        self._quote = quote  # text before the words
        self._seen = 0  # ids of the reply that were looked at
        self._begin: int | None = 0 if quote == "" else None  # ids of the reply before the words
        self._words: tuple[int, ...] | None = None

    def constrain(self, logits: Tensor, ids: Sequence[int]) -> Tensor:
        """Scores (V,) of the next id after the ids of a reply: inside the quotation one id alone, for what
        was said is no matter of chance."""
        while self._seen < len(ids) and self._begin is None:
            self._seen += 1
            self._look_for_quote(ids[: self._seen])
        if self._begin is None:
            return logits
        if self._words is None:
            self._words = self._spelling.transcribe(self._read(ids), self._prefix, self._cancel)
        written = ids[self._begin :]
        if len(written) > len(self._words) or tuple(written) != self._words[: len(written)]:
            return logits
        if len(written) < len(self._words):
            return _nothing_but(self._words[len(written)], logits)
        is_word = torch.from_numpy(self._spelling.is_word).to(logits.device)
        return _nothing_but(int(logits.masked_fill(is_word, float("-inf")).argmax()), logits)

    def _look_for_quote(self, ids: Sequence[int]) -> None:
        """Does the last of the ids open the quotation?"""
        _, quote, words = self._spelling.text_of(ids).partition(self._quote)
        if quote:
            self._begin = len(ids)
            if words:  # the mark and the first letters are one id
                self._prefix = self._prefix.after(self._spelling.ids_of(words))


def _nothing_but(id_: int, logits: Tensor) -> Tensor:
    scores = torch.full_like(logits, float("-inf"))
    scores[id_] = 0.0
    return scores
