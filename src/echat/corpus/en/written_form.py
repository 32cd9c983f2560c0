"""Written form of English transcripts: case, and the mark at the end of a text that lacks it.

Rules alone, so that a transcript always gets the same form: no comma and no second sentence is invented.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path

from echat.corpus.en.questions import is_question, word_set

Lexicon = Mapping[str, str]  # lower-case word -> how it is written inside a sentence

_NAMES = Path(__file__).parent / "capitalized_words.txt"
_ENDINGS = frozenset(("s", "m", "re", "ve", "ll", "d", ""))
_MONTH_BEFORE = word_set("in of since until till by last next this early late mid every")
_MONTH_AFTER = word_set(
    "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth thirteenth fourteenth "
    "fifteenth sixteenth seventeenth eighteenth nineteenth twentieth twenty thirtieth thirty nineteen"
)
_AFTER_NEW = word_set("york zealand england orleans jersey delhi mexico")
_TOKEN = re.compile(r"^(\W*)(.*?)([^\w']*)$")  # marks, word, marks
_ENDS_SENTENCE = re.compile(r"[.!?\u2026][\"'\u201d)]*$")
_BREAKS = frozenset('.!?\u2026:;"\u201c\u201d(')


@cache
def basic_lexicon() -> dict[str, str]:
    """Calendar, countries and their languages, frequent first names, titles and abbreviations."""
    return {word.lower(): word for word in _NAMES.read_text(encoding="utf-8").split()}


def mid_sentence_capitals(texts: Iterable[str], common: frozenset[str] = frozenset()) -> dict[str, str]:
    """Words that the texts write with a capital inside sentences, twice or more, and more often than without.

    `common` words, which are names as well, are left out.
    """
    counts: dict[str, Counter[str]] = {}
    for text in texts:
        before = "."
        for word in re.findall(r"[A-Za-z']+|[^\sA-Za-z']", text.replace("\u2019", "'")):
            if before not in _BREAKS and word[0].isalpha():
                stem = _stem(word)
                counts.setdefault(stem.lower(), Counter())[stem] += 1
            before = word
    found = {}
    for word, spellings in counts.items():
        spelling, times = min(spellings.items(), key=lambda item: (-item[1], item[0]))
        if spelling != word and times >= 2 and 2 * times > spellings.total() and len(word) > 1:
            found[word] = spelling
    return {word: spelling for word, spelling in sorted(found.items()) if word not in common}


def written_form(text: str, lexicon: Lexicon | None = None) -> str:
    """A transcript as it is written: "is it me" -> "Is it me?"; the written form of a written form is itself.

    Case is restored in a text that has one case only; a text in both keeps its own. Marks stay; a missing one
    at the end becomes a question mark or a full stop. `lexicon` extends `basic_lexicon`.
    """
    tokens = [_TOKEN.match(token).groups() for token in text.replace("\u2019", "'").split()]  # type: ignore[union-attr]
    if not any(word for _, word, _ in tokens):
        return ""
    words = [word for _, word, _ in tokens]
    letters = "".join(words)
    if letters.islower() or (letters.isupper() and sum(map(str.isalpha, letters)) > 1):
        words = _with_case([word.lower() for word in words], {**basic_lexicon(), **(lexicon or {})})
    start = 0  # of the last sentence
    for place, (opening, _, closing) in enumerate(tokens):
        if place == start:
            words[place] = _capitalized(words[place])
        tokens[place] = (opening, words[place], closing)
        if _ENDS_SENTENCE.search(closing) and place + 1 < len(tokens):
            start = place + 1
    written = " ".join("".join(token) for token in tokens)
    if _ENDS_SENTENCE.search(written):
        return written
    asked = is_question([word.lower() for word in words[start:] if word])
    return written.rstrip(",;:-") + ("?" if asked else ".")


def _with_case(words: list[str], lexicon: Lexicon) -> list[str]:
    return [_cased(words, place, lexicon) for place in range(len(words))]


def _cased(words: list[str], place: int, lexicon: Lexicon) -> str:
    word = words[place]
    if _is_letter(words, place):
        return word.upper()
    if word in ("may", "march"):
        return _capitalized(word) if _is_month(words, place) else word
    if word == "new":
        return _capitalized(word) if _AFTER_NEW.intersection(words[place + 1 : place + 2]) else word
    stem = _stem(word)
    return lexicon.get(stem, stem) + word[len(stem) :]


def _is_letter(words: list[str], place: int) -> bool:
    """A letter by itself, as of a spelled word; "a" only beside others."""
    if len(words[place]) != 1 or not words[place].isalpha():
        return False
    beside = [*words[max(0, place - 1) : place], *words[place + 1 : place + 2]]
    return words[place] != "a" or any(len(word) == 1 and word != "i" for word in beside)


def _is_month(words: list[str], place: int) -> bool:
    before, after = words[:place][-1:], words[place + 1 : place + 2]
    return bool(_MONTH_BEFORE.intersection(before) or _MONTH_AFTER.intersection(after))


def _stem(word: str) -> str:
    """The word without an ending behind an apostrophe: "i'm" -> "i"; "o'clock" stays whole."""
    stem, apostrophe, ending = word.partition("'")
    return stem if apostrophe and stem and ending.lower() in _ENDINGS else word


def _capitalized(word: str) -> str:
    return word[:1].upper() + word[1:]
