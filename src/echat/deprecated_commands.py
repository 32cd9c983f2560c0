"""Deprecated commands `python -m echat.MODULE`: each names its replacement on stderr and runs it.

They stay for one version. A module that was a command ends in
`if __name__ == "__main__": run_replacement("echat.MODULE")` and has its row in one of the tables below.
"""

from __future__ import annotations

import runpy
import sys
from collections.abc import Callable, Sequence

Words = Sequence[str]

SAME_ARGUMENTS = {
    "echat.corpus.build": "corpus build",
    "echat.corpus.kokoro_corpus": "corpus conversation-audio",
    "echat.corpus.written": "corpus conversation-records",
    "echat.data.text_tokenizer": "data train-tokenizer",
    "echat.train": "train",
    "echat.train.average": "average",
    "echat.train.export": "export",
    "echat.train.pack": "assemble",
}


def _speech_ids(words: Words) -> list[list[str]]:
    """TOKENIZER MANIFEST ..."""
    tokenizer, *manifests = words or [""]
    return [["data", "tokenize", manifest, "--tokenizer", tokenizer] for manifest in manifests]


OTHER_ARGUMENTS: dict[str, tuple[str, Callable[[Words], list[list[str]]]]] = {
    "echat.train.speech_ids": ("data tokenize MANIFEST --tokenizer TOKENIZER", _speech_ids),
}
"""Module -> the command as one writes it, and the commands that given arguments stand for."""


def run_replacement(module: str) -> None:
    """Run what replaces `python -m MODULE` with the arguments of this process, and leave it."""
    same = SAME_ARGUMENTS.get(module)
    if same is not None:
        new, commands = f"{same} (the same arguments)", [[*same.split(), *sys.argv[1:]]]
    else:
        new, translate = OTHER_ARGUMENTS[module]
        commands = translate(sys.argv[1:]) or [[*new.split()[:2], "--help"]]
    print(f"`python -m {module}` is deprecated, use: echat {new}", file=sys.stderr)
    for words in commands:
        sys.argv = ["echat", *words]
        try:
            runpy.run_module("echat", run_name="__main__")
        except SystemExit as end:
            if end.code or words is commands[-1]:
                raise
