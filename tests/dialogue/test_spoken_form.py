"""A text as it is read aloud: the right words, and the same ones when it is read from those words again."""

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from echat.dialogue.spoken_form import spoken_form

SPOKEN = {
    "i am glad you told me": "i am glad you told me",
    "I have 3 apples.": "I have three apples.",
    "It costs $4.50 today.": "It costs four dollars and fifty cents today.",
    "It costs $1,234.56.": "It costs one thousand two hundred and thirty four dollars and fifty six cents.",
    "That is $5 million": "That is five million dollars",
    "€20 and £3.99": "twenty euros and three pounds and ninety nine pence",
    "Only $1.01": "Only one dollar and one cent",
    "The meeting is at 5:30 pm.": "The meeting is at five thirty p m.",
    "See you at 10:00.": "See you at ten o'clock.",
    "10 a.m. is early": "ten a m is early",
    "On March 3, 2024 we met.": "On the third of march, twenty twenty four we met.",
    "Born 12/25/1999.": "Born the twenty fifth of december nineteen ninety nine.",
    "2024-03-05": "the fifth of march twenty twenty four",
    "He ran 5 km in 25 min.": "He ran five kilometers in twenty five minutes.",
    "It weighs 2.5kg": "It weighs two point five kilograms",
    "50% of people": "fifty percent of people",
    "Dr. Smith lives on Main St.": "doctor Smith lives on Main Street",
    "Mr. and Mrs. Jones": "Mister and Misses Jones",
    "e.g. this one": "for example this one",
    "cats, dogs, etc. are here": "cats, dogs, et cetera are here",
    "The U.S.A. and NASA": "The U S A and NASA",
    "I read HTML and PDFs": "I read H T M L and P D Fs",
    "call 555-123-4567": "call five five five, one two three, four five six seven",
    "the 1st and 22nd": "the first and twenty second",
    "1/2 cup": "one half cup",
    "-5 degrees": "negative five degrees",
    "20°C": "twenty degrees Celsius",
    "turn 90° left": "turn ninety degrees left",
    "page 12-15": "page twelve to fifteen",
    "1,000,000 people": "one million people",
    "3.14": "three point one four",
    "in 1999": "in nineteen ninety nine",
    "the 1990s": "the nineteen nineties",
    "the '80s were fun": "the eighties were fun",
    "version 2.0.1": "version two point zero point one",
    "Room 101": "Room one hundred and one",
    "visit https://example.com/a now": "visit example dot com slash a now",
    "mail joe.doe@example.com today": "mail joe dot doe at example dot com today",
    "www.test.org": "www dot test dot org",
    "100 mph": "one hundred miles per hour",
    "WWII ended": "World War Two ended",
    '"Hello," she said (quietly).': "Hello, she said, quietly.",
    "He is 5'10\" tall": "He is five feet ten inches tall",
    "#hashtag and @user": "hashtag hashtag and at user",
    "A&B": "A and B",
    "open 24/7": "open twenty four seven",
    "2 + 2 = 4": "two plus two equals four",
    "don't you think it's fine?": "don't you think it's fine?",
    "St. John's church": "Saint John's church",
    "No. 7 wins": "number seven wins",
    "**bold** and _soft_ `code`": "bold and soft code",
    "# Title\n\nSome text": "Title. Some text",
    "- one\n- two\n- three": "one. two. three",
    "1. wash\n2. dry": "one. wash. two. dry",
    "[the link](http://a.org/x)": "the link",
    "I am happy 😀🎉 today": "I am happy today",
    "well :-) then": "well then",
    "<speak>Hello <break time='1s'/> there</speak>": "Hello, there",
    "fish &amp; chips": "fish and chips",
    "wait... what?": "wait, what?",
    "he came — and went": "he came, and went",
    "I AM SO GLAD": "I AM SO GLAD",
    "今天是2024年3月5日，温度-5°C。": "今天是二零二四年三月五日，温度负五摄氏度。",
    "价格是¥12.5": "价格是十二点五元",
    "现在10:30": "现在十点三十分",
    "50%的人": "百分之五十的人",
    "你好，世界！": "你好，世界！",
    "1,234 people": "one thousand two hundred and thirty four people",
    "$2,500": "two thousand five hundred dollars",
    "the 1900s": "the nineteen hundreds",
    "7€": "seven euros",
    "50/50": "fifty fifty",
    "+1 555 123 4567": "one five five five one two three four five six seven",
    "½ cup": "one half cup",
    "±3": "plus or minus three",
    "a < b": "a is less than b",
    "the U.S. President": "the U S President",
    "Hi!!! What??": "Hi! What?",
    "| a | b |\n|---|---|\n| c | d |": "a. b. c. d",
    "1. ": "one.",
    "我有3个iPhone": "我有三个iPhone",
}
PARTS = [
    "a",
    "I",
    "3",
    "12",
    "$",
    "€",
    "%",
    ".",
    ",",
    "!",
    "?",
    "-",
    "'",
    '"',
    "(",
    ")",
    "[",
    "]",
    "*",
    "_",
    "`",
    "#",
]
PARTS += [
    "<",
    ">",
    "/",
    "\\",
    "&",
    "&amp;",
    "<b>",
    " ",
    "\n",
    "\n\n",
    "- ",
    "1. ",
    "Dr.",
    "e.g.",
    "p.m.",
    "😀",
    "½",
]
PARTS += [
    "٣",
    "…",
    "—",
    "你",
    "。",
    "，",
    "@",
    "x.com",
    "http://a.b/c",
    "|",
    "St. ",
    "U.S.",
    "10:30",
    "1,234",
    "+",
    "AM",
]


@pytest.mark.parametrize(("text", "words"), SPOKEN.items())
def test_a_text_becomes_the_words_to_say(text: str, words: str) -> None:
    assert spoken_form(text) == words


@pytest.mark.parametrize("text", ["...", "-", "😀", "---", " \n", "***", "!?", "<break/>"])
def test_a_text_without_words_becomes_nothing(text: str) -> None:
    assert spoken_form(text) == ""


@given(st.lists(st.sampled_from(PARTS), max_size=9).map("".join) | st.text(max_size=20))
def test_the_spoken_form_of_a_spoken_form_is_itself(text: str) -> None:
    words = spoken_form(text)
    assert spoken_form(words) == words
    assert "\n" not in words and not any(letter.isdigit() and letter.isascii() for letter in words)


@given(st.lists(st.sampled_from(["so", "this", "isn't", "well-known", "café", "we"]), min_size=1))
def test_plain_words_stay(words: list[str]) -> None:
    assert spoken_form(" ".join(words)) == " ".join(words)


def test_plain_words_load_no_grammar() -> None:
    code = "import sys; from echat.dialogue.spoken_form import spoken_form; "
    code += "spoken_form('i am glad, you know.'); print('wetext' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_a_grammar_that_cannot_load_is_an_error_and_no_reading_digit_by_digit(monkeypatch):
    from echat.dialogue import spoken_form as module

    module._grammar.cache_clear()
    monkeypatch.setitem(sys.modules, "wetext", None)
    with pytest.raises(ImportError, match="wetext"):
        spoken_form("20 degrees")
