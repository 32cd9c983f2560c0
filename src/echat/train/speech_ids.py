"""`python -m echat.train.speech_ids TOKENIZER MANIFEST ...`: writes `speech_ids.jsonl` beside each manifest.

Of a dialogue record the spoken reply is turned into ids, of any other record its audio; records without
either are left out.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from echat.checkpoint import atomic_path
from echat.data.manifest import SPEECH_IDS
from echat.token2wav.speech_tokenizer import AnySpeechTokenizer, load_speech_tokenizer
from echat.train.objectives.speech_clips import heard, read_clips

BATCH = 8  # clips of like length encoded together


def write_speech_ids(tokenizer: AnySpeechTokenizer, manifest: Path, max_seconds: float = 30.0) -> int:
    """Ids of every utterance of the manifest, in a sidecar that appears whole; returns how many."""
    clips = read_clips([str(manifest)], min_seconds=0.1, max_seconds=max_seconds)
    sounds = list({clip.path: clip for clip in clips}.values())  # many records may share one reply
    ids: dict[str, list[int]] = {}
    for start in range(0, len(sounds), BATCH):
        batch = sounds[start : start + BATCH]
        encoded = tokenizer.encode([heard(clip) for clip in batch])
        ids |= {clip.path: row for clip, row in zip(batch, encoded, strict=True)}
    with (
        atomic_path(manifest.with_name(SPEECH_IDS)) as temporary,
        temporary.open("w", encoding="utf-8") as lines,
    ):
        for clip in clips:
            lines.write(json.dumps({"key": clip.key, "speech_ids": ids[clip.path]}) + "\n")
    return len(clips)


def main(arguments: list[str] | None = None) -> int:
    """0 when all was written, 2 when something has to be mended first."""
    parser = argparse.ArgumentParser(
        prog="python -m echat.train.speech_ids", description="Write the speech ids of manifests."
    )
    parser.add_argument("tokenizer", type=Path, help="speech tokenizer folder")
    parser.add_argument("manifests", type=Path, nargs="+", help="manifest.jsonl files")
    options = parser.parse_args(arguments)
    try:
        tokenizer = load_speech_tokenizer(options.tokenizer)
        for manifest in options.manifests:
            print(f"{manifest}: ids of {write_speech_ids(tokenizer, manifest)} utterances")
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
