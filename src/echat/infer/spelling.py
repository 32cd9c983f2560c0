"""Joint decoding of the user's words: by what the sound spells, and by what the language model expects.

The frames of a model that was trained to spell (CTC over its text table, `train/objectives/dialogue_loss`)
say which ids they hold. Where a reply quotes the user, each id is chosen by both: the language model, which
knows how people talk, and the probability that the sound goes on with this id (Watanabe et al. 2017, "Hybrid
CTC/attention architecture", equations 45 to 50, with a beam of one).

Legend: D frames of the sound, dim their width, V text ids.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby

import numpy as np
import torch
from torch import Tensor

from echat.dialogue.tasks import Task
from echat.dialogue.thinking import QUOTE_IN_LABELS, QUOTE_IN_LANGUAGE, THINK_BEGIN
from echat.dialogue.vocabulary import END_OF_DOCUMENT
from echat.model.speech_llm import SpeechLLM
from echat.model.spelling import row_lengths, spelled_scores
from echat.model.text_tokenizer import TextTokenizer

SHARE = 0.4
"""Of the sound in each choice; the rest is the language model's. Best of 0.3 to 0.6 on the dev questions."""
LEAST = -20.0
"""Log probability of what the sound cannot hold at all: the language model may still insist."""
_NEVER = -1e30


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

    def listener(self, frames: Tensor, task: Task) -> "Listener | None":
        """For a reply to the sound of these frames (D, dim); None where the task does not quote the user."""
        quote = _quote(task)
        if quote is None or not len(frames):
            return None
        table = self._model.llm.text_embedding.weight
        scores = spelled_scores(frames, table, self._lengths)
        log_probs = scores.log_softmax(dim=-1).double().cpu().numpy()
        return Listener(self, Prefix.of(log_probs, self.blank).after(self._cues(log_probs)), quote)

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


@dataclass(frozen=True)
class Prefix:
    """How probable it is that a sound begins with certain ids: the forward variables of CTC.

    Log probabilities; of all alignments of the ids with frames 0 to t, those whose last frame is the last id
    (`ended`) and those whose last frame is blank (`paused`).
    """

    log_probs: np.ndarray  # (D, V)
    likely: np.ndarray  # ids that can come next at all
    narrow: np.ndarray  # (D, likely ids)
    blank: int
    ended: np.ndarray  # (D,)
    paused: np.ndarray  # (D,)
    last: int | None = None
    total: float = 0.0  # that the sound begins with the ids, whatever follows

    @classmethod
    def of(cls, log_probs: np.ndarray, blank: int) -> "Prefix":
        """No ids yet: nothing but blanks.

        An id comes next with at most the sum of its probabilities at all frames. Where that is below `LEAST`
        nothing needs to be summed up, which leaves few ids of a large table.
        """
        likely = np.flatnonzero(log_probs.max(axis=0) > LEAST - np.log(len(log_probs)))
        paused = np.cumsum(log_probs[:, blank])
        return cls(log_probs, likely, log_probs[:, likely], blank, np.full(len(log_probs), _NEVER), paused)

    def after(self, ids: Sequence[int]) -> "Prefix":
        """The prefix with these ids at its end."""
        prefix = self
        for id_ in ids:
            prefix = prefix._with(id_)
        return prefix

    def next(self) -> np.ndarray:
        """(V,) log probability of each id to come next, given the prefix; the blank stands for the end."""
        scores = np.full(self.log_probs.shape[1], _NEVER)
        scores[self.likely] = _log_sum(self._reached()[:, None] + self.narrow)
        if self.last is not None:  # the same id again needs a blank between
            scores[self.last] = _log_sum(self._reached(self.last) + self.log_probs[:, self.last])
        scores[self.blank] = np.logaddexp(self.ended[-1], self.paused[-1])
        return np.asarray(np.maximum(scores - self.total, LEAST))

    def _reached(self, id_: int | None = None) -> np.ndarray:
        """(D,) that the prefix is complete before frame t, and this id may begin there."""
        whole = self.paused if id_ is not None and id_ == self.last else np.logaddexp(self.ended, self.paused)
        return np.concatenate([[0.0 if self.last is None else _NEVER], whole[:-1]])

    def _with(self, id_: int) -> "Prefix":
        begins = (self._reached(id_) + self.log_probs[:, id_]).tolist()
        stays, rests = self.log_probs[:, id_].tolist(), self.log_probs[:, self.blank].tolist()
        ended, paused = [], []
        on, off = _NEVER, _NEVER
        for begin, stay, rest in zip(begins, stays, rests):
            on, off = np.logaddexp(begin, on + stay), np.logaddexp(on, off) + rest
            ended.append(on)
            paused.append(off)
        total = float(_log_sum(np.array(begins)))
        return replace(self, ended=np.array(ended), paused=np.array(paused), last=id_, total=total)


def _log_sum(values: np.ndarray) -> np.ndarray:
    """Logarithm of the sum of exponentials over the first axis."""
    most = values.max(axis=0)
    return np.asarray(most + np.log(np.exp(values - most).sum(axis=0)))


class Listener:
    """Follows one reply and has a say in what it quotes. Local to that reply."""

    def __init__(self, spelling: Spelling, prefix: Prefix, quote: str) -> None:
        self._spelling, self._prefix = spelling, prefix
        self._quote = quote  # text before the words
        self._seen = 0  # ids of the reply that were looked at
        self._is_open = quote == ""
        self._is_over = False

    def constrain(self, logits: Tensor, ids: Sequence[int]) -> Tensor:
        """Scores (V,) of the next id after the ids of a reply: joint ones inside the quotation, and there
        the best one alone, for what was said is no matter of chance."""
        while self._seen < len(ids) and not self._is_over:
            self._seen += 1
            self._follow(ids[: self._seen])
        if self._is_over or not self._is_open:
            return logits
        heard = self._prefix.next()
        ends = heard[self._spelling.blank]  # what is no word ends the words
        spelled = np.where(self._spelling.is_word, heard, ends)
        joint = (1 - SHARE) * logits.log_softmax(dim=0) + SHARE * torch.from_numpy(spelled).to(logits)
        return torch.full_like(logits, float("-inf")).index_fill(0, joint.argmax(), 0.0)

    def _follow(self, ids: Sequence[int]) -> None:
        """Take note of the last of the ids."""
        spelling = self._spelling
        if not self._is_open:
            _, quote, words = spelling.text_of(ids).partition(self._quote)
            self._is_open = bool(quote)
            if words:  # the mark and the first letters are one id
                self._prefix = self._prefix.after(spelling.ids_of(words))
        elif spelling.is_word[ids[-1]]:
            self._prefix = self._prefix.after(ids[-1:])
        else:
            self._is_over = True
