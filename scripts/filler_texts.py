"""Filler texts for speech synthesis after the written conversations: prompts, sentences, every frequent word.

    python scripts/filler_texts.py TOKENIZER FILLERS.jsonl [--pack DATA]

Text-to-speech of arbitrary text needs training data with its words. The list holds, in this order: the
replies of the scenario grammar, the prompts of the pack's CC0 sets, then by turns sentences of the grammar
and lists of the whole words of a text tokenizer, each of which occurs once. `echat corpus conversation-audio
--fillers` reads the rows.
"""

import argparse
import json
import random
from collections.abc import Iterator
from itertools import chain, zip_longest
from pathlib import Path

from tokenizers import Tokenizer

from echat.corpus.en.scenario_grammar import load_scenarios, sample_dialogues

Row = dict[str, str]
PROMPT_SETS = ("kathleen", "common_voice_multi")  # CC0
SENTENCES, QUESTIONS = 6000, 3000
SPACE = "\u0120"  # byte-level BPE writes a blank before a word so
UNSAID = ("fuck", "shit", "bitch", "slut", "whore", "nigg", "rape", "porn", "nazi", "cunt", "fag")
CARRIERS = (
    "Here are a few words: {0}, {1}, {2} and {3}.",
    "First {0}, then {1}, and after that {2} and {3}.",
    "Is it {0} or {1}? I think it is {2}, not {3}.",
    "{0}, {1}, {2}, {3}. That was all.",
    "Did you say {0}, or was it {1}, {2} or even {3}?",
    "Think of {0} and {1}; then forget {2}, and keep {3}.",
    "The next ones are {0}, {1}, {2} and {3}!",
    "Let me read that again: {0}, {1}, {2}, {3}.",
    "One is {0}, two is {1}, three is {2}, and four is {3}.",
    "She wrote {0} and {1} on one page, {2} and {3} on the other.",
)


def whole_words(tokenizer: Tokenizer) -> list[str]:
    """Words of three letters and more that are one id, in the order of their ids: the most frequent first."""
    vocab = tokenizer.get_vocab(with_added_tokens=False)
    words = [token[1:] for token in sorted(vocab, key=vocab.__getitem__) if token.startswith(SPACE)]
    plain = (word for word in words if len(word) > 2 and word.isascii() and word.isalpha())
    return [word for word in plain if not any(part in word.lower() for part in UNSAID)]


def word_lists(words: list[str], rng: random.Random) -> Iterator[str]:
    """Each word once, four of them in a sentence."""
    shuffled = rng.sample(words, len(words))
    for start in range(0, len(shuffled) - 3, 4):
        text = rng.choice(CARRIERS).format(*shuffled[start : start + 4])
        yield text[0].upper() + text[1:]


def prompts(pack: Path | None) -> Iterator[tuple[str, str]]:
    """(text, set) of the English prompts that people of the training split read."""
    for name in PROMPT_SETS if pack is not None else ():
        for line in (pack / name / "manifest.jsonl").read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            if row["split"] == "train" and row["lang"] == "en" and row["text"]:
                yield row["text"], name


def filler_rows(tokenizer: Tokenizer, pack: Path | None, seed: int = 1) -> Iterator[Row]:
    """All rows, in the order in which they are to be read."""
    rng = random.Random(seed)
    replies = sorted({reply for situation in load_scenarios() for reply in situation.replies.values()})
    yield from (_row("answers", text, "grammar reply") for text in rng.sample(replies, len(replies)))
    yield from (_row("answers", text, source) for text, source in prompts(pack))
    said = list(
        dict.fromkeys(one.text for one in sample_dialogues("train", 2 * (SENTENCES + QUESTIONS), seed))
    )
    questions = [_row("questions", text, "grammar") for text in said[:QUESTIONS]]
    sentences = [_row("answers", text, "grammar") for text in said[QUESTIONS : QUESTIONS + SENTENCES]]
    lists = [_row("answers", text, "words") for text in word_lists(whole_words(tokenizer), rng)]
    mixed = chain.from_iterable(zip_longest(lists, sentences, questions))
    yield from (row for row in mixed if row is not None)


def _row(role: str, text: str, source: str) -> Row:
    return {"role": role, "text": text, "source": source}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("tokenizer", type=Path, help="folder with tokenizer.json")
    parser.add_argument("fillers", type=Path)
    parser.add_argument("--pack", type=Path)
    arguments = parser.parse_args()
    rows = list(filler_rows(Tokenizer.from_file(str(arguments.tokenizer / "tokenizer.json")), arguments.pack))
    partial = arguments.fillers.with_suffix(".partial")
    partial.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    partial.replace(arguments.fillers)
    print(f"{arguments.fillers}: {len(rows)} texts")


if __name__ == "__main__":
    main()
