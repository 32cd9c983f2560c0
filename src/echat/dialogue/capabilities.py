"""Capabilities of a model, declared in its folder: languages, length of the history, form of its texts.

A model answers any input, also one outside of its training data: then with nonsense. The declaration states
these limits, and texts are converted to the form of the training data. Nothing declared means no limit.
"""

from __future__ import annotations

import re
import unicodedata

from pydantic import Field, model_validator

from echat.config import Config
from echat.dialogue.spoken_form import spoken_form

SCRIPTS = {"zh": {"CJK"}, "yue": {"CJK"}, "ja": {"CJK", "HIRAGANA", "KATAKANA"}, "ko": {"HANGUL", "CJK"}}
SCRIPTS |= {"ru": {"CYRILLIC"}, "uk": {"CYRILLIC"}, "el": {"GREEK"}, "ar": {"ARABIC"}, "he": {"HEBREW"}}
SCRIPTS |= {"hi": {"DEVANAGARI"}, "th": {"THAI"}}
LATIN = {"LATIN"}  # of every other language
_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
_MARK = re.compile(r"[^\w\s']|_")
_CLAUSE_MARKS = ".!?;:,…。！？；：，、"


class WrittenForm(Config):
    """How texts of one kind were written in training."""

    lowercase: bool = False
    spelled_out: bool = Field(False, description="numbers, units and symbols as words, no markup")
    marks: str | None = Field(
        None, description="punctuation of the training data, besides the apostrophe; None: any"
    )

    def of(self, text: str) -> str:
        """The text as training would have written it."""
        if self.spelled_out:
            text = spoken_form(text)
        if self.lowercase:
            text = text.lower().replace("’", "'")
        if self.marks is None:
            return text
        pause = "," if "," in self.marks else " "
        text = _MARK.sub(lambda found: self._mark(found[0], pause), text)
        if self.marks:
            text = re.sub(rf"\s*([{re.escape(self.marks)}])[\s{re.escape(self.marks)}]*", r"\1 ", text)
        return " ".join(text.split()).strip(self.marks + " ")

    def _mark(self, mark: str, pause: str) -> str:
        if self.marks and mark in self.marks:
            return mark
        return pause if mark in _CLAUSE_MARKS else " "


class ReadingCapabilities(WrittenForm):
    """The form of texts for text-to-speech, and the pace of their speech."""

    piece_ids: int | None = Field(None, ge=4, description="text ids that are read well at once; None: many")
    ids_per_syllable: tuple[float, float] | None = Field(
        None, description="speech ids: least and most of speech that says its text; None: not checked"
    )

    @model_validator(mode="after")
    def _least_is_less(self) -> ReadingCapabilities:
        pace = self.ids_per_syllable
        if pace is not None and not 0 < pace[0] < pace[1]:
            raise ValueError(f"ids_per_syllable: expected least and most, found {pace[0]:g} and {pace[1]:g}")
        return self


class Capabilities(Config):
    """Limits of the training data of a model; a field that is left out has no limit."""

    history_turns: int | None = Field(None, ge=0, description="earlier turns (question and answer) at most")
    languages: tuple[str, ...] = Field((), description="codes such as en, zh; none: any")
    questions: WrittenForm = Field(WrittenForm(), description="typed words of the user")
    reading: ReadingCapabilities = Field(ReadingCapabilities(), description="texts that are read aloud")

    def foreign_words(self, text: str) -> list[str]:
        """Words in a script that none of the languages uses."""
        if not self.languages:
            return []
        scripts = set[str]().union(*(SCRIPTS.get(code, LATIN) for code in self.languages))
        return [word for word in _WORD.findall(text) if not _script_of(word) <= scripts]

    def refuse_foreign(self, text: str, what: str) -> None:
        """ValueError for text in a script outside of the training data: byte-level ids can encode it, but the
        reply to it would be made up."""
        if words := self.foreign_words(text):
            shown = ", ".join(repr(word) for word in words[:3])
            raise ValueError(
                f"{what}: expected text in {' or '.join(self.languages)}, the languages of this model, found "
                f"{shown}{' ...' if len(words) > 3 else ''} in another script; translate it or take another "
                "model"
            )


UNRESTRICTED = Capabilities()


def _script_of(word: str) -> set[str]:
    """Unicode names of the scripts of its alphabetic characters."""
    alphabetic = [char for char in word if char.isalpha() and char not in "ªºµ"]
    return {unicodedata.name(char, "UNKNOWN").split(" ")[0].split("-")[0] for char in alphabetic}
