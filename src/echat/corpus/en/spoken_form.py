"""English texts in spoken form: transcripts in plain lower case, texts as espeak-ng should pronounce them."""

from __future__ import annotations

import re

_DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_NAME = re.compile(r"\bechat\b", re.IGNORECASE)  # which espeak-ng would read as one French word
_EMERGENCY_NUMBER = re.compile(r"\b(?:911|999|112|988|116 ?123)\b")


def kokoro_text(text: str) -> str:
    """The text to synthesise: "echat" as two words, numbers to dial digit by digit, a mark at the end."""
    text = " ".join(_NAME.sub("e chat", text).split())
    text = _EMERGENCY_NUMBER.sub(lambda m: " ".join(_DIGITS[int(d)] for d in m[0] if d.isdigit()), text)
    return text if text[-1:] in ".!?…" else text + "."


def normalize_transcript(text: str | None) -> str | None:
    """Lower case, a to z and apostrophes only; None for digits, other alphabets, or nothing."""
    plain = (text or "").lower().replace("\u2019", "'")
    if any(character.isdigit() or (character.isalpha() and not character.isascii()) for character in plain):
        return None
    words = [word.strip("'") for word in re.sub(r"[^a-z']+", " ", plain).split()]
    return " ".join(word for word in words if word) or None
