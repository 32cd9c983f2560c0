"""Text normalization for text-to-speech: numbers, units and symbols in words, without markup.

Numbers, dates, times, money and measures are left to WeText (English and Chinese grammars); markup goes
first, and text that its grammars read badly is rewritten for them. Plain words do not load it.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from echat.dialogue.markup import without_markup

Rule = tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]]

_ROUNDS = 8
_HAN = re.compile(r"[\u3400-\u9fff]")
_NEEDS_GRAMMAR = re.compile(r"[\d$€£¥%@#&+=°℃℉/<>×÷]|\b(?:Dr|Mr|Mrs|Ms|Prof|Jr|Sr)\.")


def spoken_form(text: str) -> str:
    """The words to speak, on one line, with punctuation; "" for a text without words.

    The spoken form of a spoken form is itself.
    """
    for _ in range(_ROUNDS):  # what one rule leaves may be another's
        if not any(char.isalnum() for char in text):
            return ""
        before, text = text, _tidy(_in_words(without_markup(unicodedata.normalize("NFC", text))))
        if text == before:
            break
    return text


# --- rewritten before the grammars

_DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
_TENS = ["tens", "twenties", "thirties", "forties", "fifties", "sixties", "seventies", "eighties", "nineties"]
_COINS = {"$": ("dollar", "cent"), "€": ("euro", "cent"), "£": ("pound", "penny")}
_URL_SIGNS = {".": " dot ", "/": " slash ", "-": " dash ", "_": " underscore ", "?": " question mark "}
_URL_SIGNS |= {"=": " equals ", "&": " and ", "@": " at ", "#": " hash ", ":": " colon ", "%": " percent "}
_URL_SIGNS |= {"+": " plus ", "~": " tilde "}
_INITIALISMS = re.compile("USA|UK|EU|AI|UN|USB|CEO|FAQ|API|ATM|AM|PM|ID|IT|IQ|UFO")
_ADDRESS = re.compile(
    r"(?<![\w@.])(?:(?:https?|ftp)://|www\.)[^\s<>\"'()\[\]]*[\w/]"
    r"|(?<![\w@.])[\w.+-]+@[\w-]+(?:\.[\w-]+)+"
    r"|(?<![\w@.])(?:[\w-]+\.)+(?:com|org|net|edu|gov|info|dev|app|io)(?:/[^\s<>\"'()\[\]]*\w)?\b"
)


def _address(found: re.Match[str]) -> str:
    text = re.sub(r"^(?:https?|ftp)://", "", found[0]).rstrip("/")
    text = re.sub(r"\d", lambda digit: f" {_DIGITS[int(digit[0])]} ", text)
    return " ".join("".join(_URL_SIGNS.get(sign, sign) for sign in text).split())


def _money(found: re.Match[str]) -> str:
    """Whole amount and cents: the grammars read a decimal point."""
    sign, whole, part = found.groups()
    name, small = _COINS[sign]
    cents = int(part or 0)
    coins = small if cents == 1 else {"penny": "pence"}.get(small, f"{small}s")
    amount = f"{whole} {name}{'' if whole == '1' else 's'}"
    return amount if not cents else f"{amount} and {cents} {coins}"


def _thousands(found: re.Match[str]) -> str:
    """The grammars take four digits for a year, and lose the first of those with a comma."""
    rest = found[2].lstrip("0")
    return f"{found[1]} thousand{' and' if 0 < len(rest) < 3 else ''}{' ' if rest else ''}{rest}"


def _half_day(found: re.Match[str]) -> str:
    return f" {found[1].lower()} m" + ("." if found["end"] is not None else "")


def _decade(found: re.Match[str]) -> str:
    century, ten = found[1] or "", found[2]
    if ten == "0":
        return f"{century} hundreds" if century != "20" else "two thousands"
    return f"{century} {_TENS[int(ten) - 1]}".strip()


def _digits(text: str) -> str:
    """A number of a telephone."""
    return " ".join("".join(f" {_DIGITS[int(sign)]}" if sign.isdigit() else " " for sign in text).split())


_ENGLISH: tuple[Rule, ...] = (
    (re.compile(r"(?<![\d.])(\d[\d,.]*)\s?([€£])(?!\s?\d)"), r"\2\1"),
    (
        re.compile(
            r"([$€£])\s?(\d[\d,]*)(?:\.(\d\d))?(?!\d|\.\d)(?!\s*(?:million|billion|thousand|bn|[MKkm]\b))"
        ),
        _money,
    ),
    (re.compile(r"(?<![\d,.])(\d),(\d{3})(?![\d,])"), _thousands),
    (re.compile(r"(?<=\d),(?=\d{3}(?!\d))"), ""),
    (re.compile(r"(?<!\d)['’]?(1\d|20|)(\d)0['’]?s\b"), _decade),
    (re.compile(r"\b(24/7|9/11|50/50)\b"), lambda found: found[1].replace("/", " ")),
    (re.compile(r"(?<![\d-])\d{3}-\d{4}\b|\+\d[\d ()-]{7,}\d"), lambda found: _digits(found[0])),
    (re.compile(r"±"), "plus or minus "),
    (re.compile(r"(?<=\s)<(?=\s)"), "is less than"),
    (re.compile(r"(?<=\s)>(?=\s)"), "is greater than"),
    (re.compile(r"\b(\d+)['′](\d+)(?:[\"″]|'')"), r"\1 feet \2 inches"),
    (re.compile(r"\b(\d+)\.(\d+)\.(\d+)\b"), r"\1 point \2 point \3"),
    (re.compile(r"\be\.\s?g\.,?", re.I), "for example"),
    (re.compile(r"\bi\.\s?e\.,?", re.I), "that is"),
    (re.compile(r"\betc\.(?=\s+[A-Z]|\s*$)"), "et cetera."),
    (re.compile(r"\betc\b\.?"), "et cetera"),
    (re.compile(r"\bvs?\.(?=\s)"), "versus"),
    (re.compile(r"\bapprox\.(?=\s)"), "approximately"),
    (re.compile(r"\bSt\.(?=\s+[A-Z])"), "Saint"),
    (re.compile(r"(?<=[a-z] )St\.?(?=\s|[,;.!?]|$)"), "Street"),
    (re.compile(r"\bAve\.(?=\s|$)"), "Avenue"),
    (re.compile(r"\bRd\.(?=\s|$)"), "Road"),
    (re.compile(r"\bProf\."), "Professor"),
    (re.compile(r"\bMs\."), "Miz"),
    (re.compile(r"\bJr\."), "junior"),
    (re.compile(r"\bSr\."), "senior"),
    (re.compile(r"\b[Nn]os?\.\s?(?=\d)"), "number "),
    (re.compile(r"\bp\.\s?(?=\d)"), "page "),
    (re.compile(r"\bpp\.\s?(?=\d)"), "pages "),
    (re.compile(r"\bWW(II|I)\b"), lambda found: f"World War {'Two' if found[1] == 'II' else 'One'}"),
    (re.compile(r"(?<=\d)\s*([AaPp])\.?[Mm](?:\.(?=\s+[A-Z]|\s*$)(?P<end>)|\.|\b)"), _half_day),
    (re.compile(r"(?<!\w)@(?=\w)"), "at "),
    (re.compile(r"(?<!\w)#(?=\d)"), "number "),
    (re.compile(r"(?<!\w)#(?=\w)"), "hashtag "),
    (re.compile(r"(?<=\d)\s*(?:°|º)\s*(?![CFK]\b)"), " degrees "),
    (re.compile(r"\bw/o\b"), "without"),
    (re.compile(r"\bw/(?=\s)"), "with"),
    (re.compile(r"\band/or\b"), "and or"),
)


def _in_words(text: str) -> str:
    """Numbers, units, abbreviations and symbols in the words of the language that the text is written in."""
    text = _ADDRESS.sub(_address, text)
    language = "zh" if _HAN.search(text) else "en"
    text = "".join(_plain_character(char) for char in text)
    if language == "en":
        for pattern, spoken in _ENGLISH:
            text = pattern.sub(spoken, text)
        text = _capitals(text)
    else:
        text = _MONEY_IN_CHINESE.sub(r"\1元", text)
    if _NEEDS_GRAMMAR.search(text):
        text = _by_grammar(text, language)
    return _capitals(text) if language == "en" else text


_MONEY_IN_CHINESE = re.compile(r"[¥￥]\s?(\d+(?:\.\d+)?)\s*元?")


@lru_cache(maxsize=2)
def _grammar(language: str) -> Any:
    from wetext import Normalizer

    return Normalizer(lang=language, operator="tn")


def _by_grammar(text: str, language: str) -> str:
    """Normalization by WeText, and digit by digit where it left digits."""
    text = _normalized(text, language)
    digits = _DIGITS if language == "en" else list("零一二三四五六七八九")
    blank = " " if language == "en" else ""
    return re.sub(r"\d", lambda found: f"{blank}{digits[int(unicodedata.digit(found[0]))]}{blank}", text)


def _normalized(text: str, language: str) -> str:
    """WeText stops with an assertion at what none of its grammars reads: then word by word, and such a word
    without its symbols."""
    grammar = _grammar(language)  # what keeps it from loading is no fault of the text
    try:
        return str(grammar.normalize(text)).replace('\\"', '"')
    except Exception:
        words = text.split()
        if len(words) > 1:
            return " ".join(_normalized(word, language) for word in words)
        plain = "".join(char if char.isalnum() else " " for char in text).strip()
        return _normalized(plain, language) if plain not in ("", text) else plain


def _plain_character(char: str) -> str:
    """Quotes and blanks in their plain form; emoji and control characters are removed."""
    if char in "“”„«»″":
        return '"'
    if char in "‘’‚′`´":
        return "'"
    if char == "⁄":  # of a fraction
        return "/"
    kind = unicodedata.category(char)
    if char in "°℃℉№":
        return unicodedata.normalize("NFKC", char)
    if kind == "So" or "\U0001f3fb" <= char <= "\U0001f3ff":
        return " "
    if kind in ("Cf", "Cc", "Co", "Cs", "Cn", "Me") or "\ufe00" <= char <= "\ufe0f":
        return " " if char.isspace() else ""
    if kind in ("No", "Nd", "Nl") and not char.isascii():
        return unicodedata.normalize("NFKC", char).replace("⁄", "/")
    return " " if char.isspace() else char


def _capitals(text: str) -> str:
    """Abbreviations with blanks between their characters: HTML -> H T M L; words in capitals stay words."""
    words = re.findall(r"[A-Za-z]{2,}", text)
    shouted = sum(word.isupper() for word in words)
    if shouted > len(words) / 2 and shouted > 1:
        return text
    text = re.sub(r"\b(?:[A-Z]\.){2,}(?=(\s*$)?)", _initials, text)
    return re.sub(r"\b([A-Z]{2,5})(?=s?\b)", lambda found: _initialism(found[1]), text)


def _initials(found: re.Match[str]) -> str:
    return " ".join(found[0].replace(".", "")) + ("." if found[1] is not None else "")


def _initialism(word: str) -> str:
    return " ".join(word) if _INITIALISMS.fullmatch(word) or not re.search("[AEIOUY]", word) else word


# --- what is left

_BRACKETS = re.compile(r"\s*[(\[{（【《「『][\s]*|[\s]*[)\]}）】》」』]")
_DASH = re.compile(r"\s+[-–—−]+\s+|\s*[—―]+\s*|(?<=\w)\s*--+\s*(?=\w)|(?<=\w)\s*[–](?=\s*\w)")
_DANGLING = re.compile(r"(?<!\w)['-]+|['-]+(?!\w)")


def _tidy(text: str) -> str:
    """Nothing but words and punctuation."""
    text = re.sub(r"\.{2,}|…+", ", ", text)
    text = _DASH.sub(", ", _BRACKETS.sub(", ", text))
    text = "".join(char if char.isalnum() or _is_kept(char) else " " for char in text)
    text = " ".join(_DANGLING.sub(" ", text).split())
    text = re.sub(r"\s+(?=[,.!?;:])", "", text)
    text = re.sub(r"[,;:]+(?=[.!?])|(?<=[.!?])[,;:]+|(?<=[,;:])[,;:]+|(?<=[.!?])[.!?]+", "", text)
    return re.sub(r"([,;:])(?=[^\s\d])", r"\1 ", text).strip(" ,;:-'.") + _end(text)


def _end(text: str) -> str:
    return "." if text.rstrip(" ,;:-'").endswith(".") else ""


def _is_kept(char: str) -> bool:
    """Punctuation, blanks and combining accents."""
    return char in " ,.!?;:'-，。！？；：、" or unicodedata.category(char) in ("Mn", "Mc")
