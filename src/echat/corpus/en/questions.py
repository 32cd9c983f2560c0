"""Is an English sentence without punctuation a question? Question words, inverted verbs, tags at its end."""

from __future__ import annotations

from collections.abc import Sequence


def word_set(text: str) -> frozenset[str]:
    """The words of a line."""
    return frozenset(text.split())


_SKIPPED = word_set(
    "and but so well oh hey hi hello okay ok um uh er hm hmm please sorry now then yes yeah no echat actually"
)
_ANYBODY = word_set(
    "i you he she it we they there this that these those anyone anybody someone somebody everyone everybody"
)
_MANY = word_set("i you we they people these those most")
_NO_PLURALS = word_set("this as us its his yes")
_OPENS_NOUN = word_set("the a an my your his her its our their any some all")
_ALWAYS_INVERTED = word_set("is are am was were does did can could will would should")
_AT_TIMES_INVERTED = word_set("do have has had may must shall might")
_AUXILIARY = _ALWAYS_INVERTED | _AT_TIMES_INVERTED
_NEGATED = word_set(
    "isn't aren't wasn't weren't doesn't didn't can't couldn't won't wouldn't shouldn't haven't hasn't don't"
)
_ASKING = word_set("what who whose whom which where when why how")
_DROPPED_SUBJECT = word_set("be not never have do so also")  # "will do", "would be nice"
_ASKING_PAIRS = frozenset(
    (
        "what about", "what if", "what for", "what else", "how about", "how come", "how so", "why not",
        "who else",
        "what happens", "what happened", "what makes", "what kind", "what sort", "how many", "how much",
        "how long", "how old", "how far", "how often",
    )
)  # fmt: skip


_BEFORE_QUESTION_WORD = word_set("for to from at in on since until with by")
# Not "is": "the thing is it".
_INVERTED_LATER = word_set("can could should shall may do does did would")
_NO_SUBJECT_BEFORE = word_set("so neither nor as than never only rarely had what") | _ANYBODY
_PERSONS = word_set("i you he she we they")


def is_question(words: Sequence[str]) -> bool:
    """Is a sentence of lower-case words a question?"""
    if words[:2] == ["and", "if"]:
        return True
    if words[0:1] == ["so"] and len(words) == 3:  # "so do i"
        return False
    start = 0
    while start < len(words) - 1 and words[start] in _SKIPPED:
        start += 1
    rest = list(words[start:])
    return bool(rest) and (_asks(rest) or _is_inverted(rest) or _asks_later(rest) or _has_tag(rest))


def _asks(words: list[str]) -> bool:
    """A question word that is followed by a verb before any subject: "what time is it", not "what i want"."""
    first, *rest = words
    if first in _BEFORE_QUESTION_WORD and rest and rest[0] in ("whom", "which", "what", "when", "where"):
        return rest[1:2] != ["case"]
    word, _, ending = first.partition("'")
    if word not in _ASKING:
        return False
    if not rest or " ".join(words[:2]) in _ASKING_PAIRS:
        return True
    if ending:
        return ending in ("s", "re", "d", "ll")
    second = rest[0].partition("'")[0]
    if word in ("who", "whose", "whom", "which", "why"):
        return second not in _ANYBODY
    return _verb_comes_first(word, rest[:4])


def _verb_comes_first(asking: str, words: list[str]) -> bool:
    """A verb, or a word with one behind an apostrophe, before any subject."""
    for word in words:
        bare, _, ending = word.partition("'")
        if word in _AUXILIARY or word in _NEGATED:
            return True
        if bare in _ANYBODY or (bare in _OPENS_NOUN and asking != "what"):
            return False
        if asking != "when" and ending == "s":
            return True
    return False


def _is_inverted(words: list[str]) -> bool:
    """A verb in front of its subject: "do you know", not "do it", "can't wait"."""
    if len(words) < 2:
        return False
    first, second = words[0], words[1].partition("'")[0]
    if first in _ALWAYS_INVERTED:
        return second not in _DROPPED_SUBJECT
    if first in _NEGATED and first != "don't":
        return second in _ANYBODY | _OPENS_NOUN
    if first in ("do", "don't", "have"):
        is_plural = first == "do" and second.endswith("s") and second not in _NO_PLURALS
        return (second in _MANY or is_plural) and words[1:3] != ["you", "dare"]
    if first in ("has", "shall", "had"):
        return second in _ANYBODY and words[:2] != ["had", "i"]
    return first in ("may", "must", "might") and second in ("i", "we")


def _asks_later(words: list[str]) -> bool:
    """An inverted verb behind the start of another clause: "i have a cold should i go"."""
    return any(
        verb in _INVERTED_LATER and subject in _PERSONS and before not in _NO_SUBJECT_BEFORE
        for before, verb, subject in zip(words[1:], words[2:], words[3:], strict=False)
    )


def _has_tag(words: list[str]) -> bool:
    """A tag at the end: "isn't it", "are you"."""
    if len(words) < 4:
        return False
    before, verb, subject = words[-3:]
    if verb in _NEGATED:
        return subject in _ANYBODY
    return verb in ("are", "will", "have") and subject == "you" and before not in _NO_SUBJECT_BEFORE | _ASKING
