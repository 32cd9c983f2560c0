"""Training of a byte-level BPE for a small language model, in the shape of Qwen's tokenizer."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from echat.checkpoint import atomic_path
from echat.data.formats.manifest import read_manifest
from echat.data.sample import Sample
from echat.dialogue.labels import KINDS, VALUES, tag
from echat.dialogue.prompts import short_prompts
from echat.dialogue.rendering import pseudo_audio_text
from echat.dialogue.thinking import LabelThought, LanguageThought, format_reply
from echat.dialogue.vocabulary import CHATML, UNKNOWN
from echat.model_files import TOKENIZER_FILE

SPECIAL = CHATML.special_tokens
_PROMPT_WEIGHT = 50  # a prompt stands in every sequence: its words deserve merges
# Qwen's split of text into words, inside which merges happen.
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def train_tokenizer(texts: Iterable[str], size: int) -> Tokenizer:
    """A tokenizer of ``size`` ids from corpus texts, our prompts and all labels; it encodes any text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size - 1,  # the unknown label joins afterwards
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*texts, *fixed_texts()], trainer)
    tokenizer.add_tokens([AddedToken(UNKNOWN, normalized=False, special=False)])
    return tokenizer


def fixed_texts() -> list[str]:
    """What the dialogue writes around any corpus: prompts, turn frames, tags, the frame of a thought."""
    tags = [tag(kind, value) for kind in KINDS for value in VALUES[kind]]
    frames = ["system\n", "user\n", "assistant\n", "\n", format_reply(LabelThought("a"), "b")]
    frames.append(format_reply(LanguageThought("a"), "b"))
    return [text for text in (*short_prompts(), *tags, *frames) for _ in range(_PROMPT_WEIGHT)]


def texts_of(samples: Iterable[Sample]) -> Iterable[str]:
    """Everything in the samples that a model reads or writes, as often as it does.

    The frame of a label thought stands in every record and so is merged into few ids.
    """
    for sample in samples:
        if sample.text:
            yield sample.text
            yield pseudo_audio_text(sample.text, sample.labels)
        if sample.reply and sample.text:
            thought = LabelThought.from_labels(sample.text, sample.labels, sample.reply_emotion)
            yield format_reply(thought, sample.reply)
        elif sample.reply:
            yield sample.reply
        if sample.thought:
            yield format_reply(LanguageThought(sample.thought), sample.reply or "")


def save_tokenizer(tokenizer: Tokenizer, folder: Path | str) -> None:
    """Write ``tokenizer.json`` and ``tokenizer_config.json``, loadable by tokenizers and by transformers."""
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": CHATML.turn_end,
        "pad_token": CHATML.document_end,
        "clean_up_tokenization_spaces": False,
    }
    with atomic_path(folder) as temporary:
        temporary.mkdir()
        tokenizer.save(str(temporary / TOKENIZER_FILE))
        (temporary / "tokenizer_config.json").write_text(json.dumps(settings, indent=2), encoding="utf-8")


def train_on_manifests(folder: Path, manifests: Iterable[Path], size: int) -> tuple[int, int]:
    """Train on the texts of manifests and save to ``folder``; (ids, texts)."""
    texts = [text for path in manifests for text in texts_of(read_manifest(path))]
    tokenizer = train_tokenizer(texts, size)
    save_tokenizer(tokenizer, folder)
    return tokenizer.get_vocab_size(), len(texts)
