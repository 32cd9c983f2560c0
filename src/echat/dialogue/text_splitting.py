"""Splitting of a text into pieces for text-to-speech (sentence segmentation).

Splits are made between sentences, else at commas and semicolons, else between words, and inside a word (or a
text written without blanks) only as a last resort. The pieces joined are exactly the text.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate, pairwise

Size = Callable[[str], int]

# A match ends where a piece may begin; the best kind of boundary first.
_BOUNDARIES = (
    re.compile(r"(?<=\n)(?=\S)|(?<=[.!?…])[\"'”’)\]]*\s+|(?<=[。！？…])[”’」』）]*"),
    re.compile(r"(?<=[,;:])\s+|\s+(?=[(\[–—])|(?<=[，；：、])"),
    re.compile(r"\s+"),
    re.compile(r"(?<=.)(?=.)", re.DOTALL),
)

PARAGRAPH, SENTENCE, CLAUSE, WORD = 0.6, 0.35, 0.18, 0.04
"""Seconds of silence after a piece that ends with such a boundary."""


def split_text(text: str, size: Size, limit: int) -> list[str]:
    """Contiguous pieces of `text`, none empty, each of at most `limit` by `size` (one character may be
    more)."""
    return [piece for piece in _cut(text, size, limit, 0) if piece]


def pause_after(piece: str) -> float:
    """Seconds of silence between a piece and the next one."""
    end = piece.rstrip().rstrip("\"'”’」』)]）")[-1:]
    if piece.endswith("\n"):
        return PARAGRAPH
    if end and end in ".!?…。！？":
        return SENTENCE
    return CLAUSE if end and end in ",;:，；：、–—" else WORD


def split_in_two(text: str, size: Size) -> list[str]:
    """The text in two pieces, cut at a blank as near to the middle as may be; itself where there is none."""
    whole = size(text)
    for limit in range(math.ceil(whole / 2), whole):
        found = split_text(text, size, limit)
        if len(found) == 2 and found[0][-1].isspace():
            return found
    return [text]


def _cut(text: str, size: Size, limit: int, kind: int) -> Iterator[str]:
    if size(text) <= limit or kind == len(_BOUNDARIES):
        yield text
        return
    ends = [found.end() for found in _BOUNDARIES[kind].finditer(text)]
    parts = [text[start:end] for start, end in pairwise([0, *ends, len(text)]) if end > start]
    # Sentences fill a piece; clauses and words are shared out evenly, so that no last word stands alone.
    for pack in _pack(parts, size, limit) if kind == 0 else _even(parts, size, limit):
        yield from _cut(pack, size, limit, kind + 1)


def _pack(parts: Sequence[str], size: Size, limit: int) -> list[str]:
    """Neighbours joined up to the limit."""
    packs: list[str] = []
    for part in parts:
        if packs and size(packs[-1] + part) <= limit:
            packs[-1] += part
        else:
            packs.append(part)
    return packs


def _even(parts: Sequence[str], size: Size, limit: int) -> list[str]:
    """As few packs as `_pack` makes, the largest as small as may be."""
    sizes = list(accumulate((size(part) for part in parts), initial=0))
    fewest, low, high = len(_pack(parts, size, limit)), math.ceil(sizes[-1] / len(parts)), limit
    while low < high:
        middle = (low + high) // 2
        if len(_pack(parts, size, middle)) <= fewest:
            high = middle
        else:
            low = middle + 1
    return _pack(parts, size, high)
