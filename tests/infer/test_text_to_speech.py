"""Text-to-speech: every piece of a text is synthesized, with a length check, retries and pauses."""

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from echat.dialogue.capabilities import Capabilities, ReadingCapabilities
from echat.dialogue.tasks import DecodingDefaults, Sampling
from echat.dialogue.text_splitting import SENTENCE
from echat.dialogue.turns import ask
from echat.errors import ModelError
from echat.infer.engine import Engine
from echat.infer.events import Reply
from echat.infer.loading import load
from echat.infer.sampling import derived_seed
from echat.infer.text_to_speech import TRIES, TextToSpeech, syllables

LIVELY = Sampling(sample=True, top_k=8, top_p=0.95, temperature=1.3)
SAMPLED = DecodingDefaults(LIVELY, LIVELY, max_new_ids=60)
READING = ReadingCapabilities(piece_ids=20, ids_per_syllable=(4, 9))
FIVE = "That is too much writing. Go out and play! Are you well? I am glad of it. Come home soon."


@pytest.fixture(scope="module")
def reader(speaking: Path) -> Engine:
    """Random weights with declared capabilities: speech ids are made up by the tests."""
    return replace(load(speaking), capabilities=Capabilities(languages=("en",), reading=READING))


def fake(
    ids_of: Callable[[str, int], int], asked: list[tuple[str, int]]
) -> Callable[[str, int | None], Reply]:
    """Gives as many speech ids as `ids_of(text, number of tries so far of this text)`."""

    def write(text: str, seed: int | None) -> Reply:
        tries = sum(text == other for other, _ in asked)
        asked.append((text, seed or 0))
        return Reply("", "", speech_ids=tuple(i % 32 for i in range(ids_of(text, tries))))

    return write


def right_length(text: str, tries: int) -> int:
    return 6 * syllables(text)


def test_every_sentence_comes_once_and_in_order(reader: Engine) -> None:
    asked: list[tuple[str, int]] = []
    parts = list(reader.read_aloud(FIVE, seed=7, write=fake(right_length, asked)))
    assert " ".join(part.text for part in parts) == FIVE
    assert [seed for _, seed in asked] == [7 + number for number in range(len(parts))]
    assert len(parts) > 1 and not any(part.is_doubtful for part in parts)


def test_pieces_together_are_the_whole(reader: Engine) -> None:
    pieces = list(reader.read_aloud(FIVE, seed=7, write=fake(right_length, [])))
    whole, rate = reader.say(FIVE, seed=7, write=fake(right_length, []))
    assert torch.equal(torch.cat([piece.waveform for piece in pieces]), whole)
    assert rate == pieces[0].rate == 22050


def test_a_pause_stands_between_sentences(reader: Engine) -> None:
    first, second = list(reader.read_aloud("Go out and play! " * 4, seed=1, write=fake(right_length, [])))[:2]
    pause = round(SENTENCE * second.rate)
    assert not second.waveform[:pause].any() and second.waveform[pause:].any()
    assert first.waveform[0] != 0


def test_one_good_piece_is_the_reply_of_the_model(reader: Engine) -> None:
    free = replace(reader, capabilities=Capabilities())
    waveform, _ = free.say("hello there", seed=2, decoding=SAMPLED)
    alone = free.run(ask(text="hello there"), "tts", seed=2, decoding=SAMPLED)
    assert torch.equal(waveform, alone.waveform)  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", [lambda n: 2 * n, lambda n: 9 * n + 60], ids=["short", "long"])
def test_a_piece_of_the_wrong_length_is_retried_with_another_seed(reader: Engine, wrong) -> None:
    asked: list[tuple[str, int]] = []

    def right_at_second(text: str, tries: int) -> int:
        return right_length(text, tries) if tries else wrong(syllables(text))

    (part,) = reader.read_aloud("go out and play", seed=5, write=fake(right_at_second, asked))
    assert not part.is_doubtful
    assert asked == [("go out and play", 5), ("go out and play", derived_seed(5, 1))]


def test_a_piece_that_stays_too_short_is_halved(reader: Engine) -> None:
    asked: list[tuple[str, int]] = []

    def right_if_short(text: str, tries: int) -> int:
        return right_length(text, tries) if len(text.split()) < 4 else 8

    parts = list(reader.read_aloud("go out and play with them", seed=5, write=fake(right_if_short, asked)))
    assert [part.text for part in parts] == ["go out and", "play with them"]
    assert not any(part.is_doubtful for part in parts)
    assert len(asked) == TRIES + 2


def test_speech_of_the_wrong_length_is_kept_and_marked_as_doubtful(reader: Engine) -> None:
    (part,) = reader.read_aloud("yes", seed=0, write=fake(lambda *_: 90, []))
    assert part.is_doubtful and part.text == "yes" and len(part.waveform)


def test_no_speech_at_all_is_an_error(reader: Engine) -> None:
    with pytest.raises(ModelError, match="found none for 'yes'"):
        reader.say("yes", seed=0, write=fake(lambda *_: 0, []))


@pytest.mark.slow
def test_a_row_of_a_batch_equals_the_text_alone(tiny: Engine) -> None:
    texts = ["come home soon.", FIVE, "i am glad that you told me"]
    replies = tiny.run_batch([ask(text=text) for text in texts], "tts", seed=4, speak=True)
    alone = [tiny.say(text, seed=4 + row)[0] for row, text in enumerate(texts)]
    assert [len(reply.waveform) for reply in replies] == [len(sound) for sound in alone]  # type: ignore[arg-type]
    assert all(torch.equal(reply.waveform, sound) for reply, sound in zip(replies, alone, strict=True))


def test_cancelling_ends_it(reader: Engine) -> None:
    stop = threading.Event()
    pieces = reader.read_aloud(FIVE, seed=0, cancel=stop, write=fake(right_length, []))
    assert len(next(pieces).waveform)
    stop.set()
    assert list(pieces) == []


@pytest.mark.parametrize(
    "text", ["", " ", "...", "-", "😀", "\n\n", "---", "<break/>", "你好", "hello Привет"]
)
def test_unreadable_text_is_refused_before_generation(reader: Engine, text: str) -> None:
    asked: list[tuple[str, int]] = []
    with pytest.raises(ValueError, match="expected"):
        reader.say(text, write=fake(right_length, asked))
    assert asked == []


def test_the_reference_reads_a_text_as_it_is(reader: Engine) -> None:
    reference = TextToSpeech(reader.tokenizer, None)
    assert reference.split("Mr. X, 3 < 5. " * 30) == ["Mr. X, 3 < 5. " * 30]


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("go out and play", 4),
        ("table", 2),
        ("make time", 2),
        ("nth", 1),
        ("你好，世界", 4),
        ("", 0),
        ("isn't", 1),
    ],
)
def test_syllables(text: str, count: int) -> None:
    assert syllables(text) == count


@pytest.mark.slow
def test_the_shipped_model_reads_five_sentences_and_not_one(tiny: Engine) -> None:
    sentence = "that is too much writing for you go out and play."
    parts = list(tiny.read_aloud(" ".join([sentence] * 5), seed=0))
    seconds = sum(len(part.waveform) for part in parts) / parts[0].rate
    assert [part.text for part in parts] == [sentence] * 5
    assert 12 < seconds < 18
