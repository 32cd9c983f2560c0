"""Removal of markup (Markdown, HTML, SSML, emoticons) from a text that is to be spoken."""

from __future__ import annotations

import html
import re
from functools import cache
from typing import Any

_SPEECH_BREAK = re.compile(r"<\s*break\b[^<>]*>", re.I)
_ALIAS = re.compile(r"<\s*sub\b[^<>]*\balias\s*=\s*[\"']([^\"']*)[\"'][^<>]*>.*?<\s*/\s*sub\s*>", re.I | re.S)
_TAG = re.compile(r"<[/!?]?[A-Za-z][^<>]*>|<!--.*?-->", re.S)
_EMOTICON = re.compile(r"(?<!\S)(?:[:;=8xX][-o^']?[)(DPp\]\[/\\|3]+|<3+|\^_*\^)(?!\w)")
_LOOKS_MARKED = re.compile(r"[*_`#\[\]|~\\]|^\s*(?:[-+>]|\d+[.)])\s|^\s*[-=_*]{3,}\s*$", re.M)
_ENDED = re.compile(r"[.!?…:;,。！？：；，][\"'”’)\]]*$")


def without_markup(text: str) -> str:
    """Text of SSML, HTML and Markdown; every block of it ends as a sentence does."""
    text = html.unescape(text) if "&" in text else text
    if "<" in text:
        text = _SPEECH_BREAK.sub(", ", _ALIAS.sub(r"\1", text))
        text = _TAG.sub(" ", text)
    text = _EMOTICON.sub(" ", text)
    blocks = _with_words(_blocks(text)) if _LOOKS_MARKED.search(text) else []
    lines = blocks or _with_words(text.splitlines())
    return " ".join(line if _ENDED.search(line) or line == lines[-1] else f"{line}." for line in lines)


def _with_words(lines: list[str]) -> list[str]:
    return [line for line in (" ".join(line.split()) for line in lines) if any(map(str.isalnum, line))]


@cache
def _markdown() -> Any:
    from markdown_it import MarkdownIt

    return MarkdownIt("commonmark", {"html": False}).enable("table").disable(["code", "html_block"])


def _blocks(text: str) -> list[str]:
    """The blocks of a Markdown text as lines, numbers of a list before its items."""
    lines: list[str] = []
    number = ""
    for token in _markdown().parse(text):
        if token.type == "list_item_open" and token.info:
            number = f"{token.info}. "
        elif token.type == "fence":
            lines += token.content.splitlines()
        elif token.type == "inline":
            shown = [" " if part.type.endswith("break") else part.content for part in _leaves(token)]
            lines.append(number + "".join(shown))
            number = ""
    return lines


def _leaves(token: Any) -> list[Any]:
    """What is shown of an inline token; an image is its description."""
    parts: list[Any] = []
    for child in token.children or []:
        parts += _leaves(child) if child.children else [child]
    return parts
