"""`python -m echat.train.tools.speech_ids TOKENIZER MANIFEST ...` writes `speech_ids.jsonl` beside each.

Of a dialogue record the spoken reply is turned into ids, of any other record its audio; records without
either are left out.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from echat.checkpoint import atomic_path
from echat.data.defects import DefectReport
from echat.data.formats.manifest import SPEECH_IDS, read_manifest
from echat.data.tools.speech_tokenization import SpeechIdEncoder, SpeechTokenizer, audio_for_speech_ids
from echat.errors import Arguments, command
from echat.token2wav.speech_tokenizer import load_speech_tokenizer


def write_speech_ids(tokenizer: SpeechTokenizer, manifest: Path) -> tuple[int, DefectReport]:
    """Ids of every utterance of the manifest, in a sidecar that appears whole; how many; what has none."""
    spoken = [sample for sample in read_manifest(manifest) if audio_for_speech_ids(sample) is not None]
    count, defects = 0, DefectReport()
    with (
        atomic_path(manifest.with_name(SPEECH_IDS)) as temporary,
        temporary.open("w", encoding="utf-8") as lines,
    ):
        for sample in SpeechIdEncoder(tokenizer, again=True)(spoken, defects):
            lines.write(json.dumps({"key": sample.key, "speech_ids": list(sample.speech_ids or ())}) + "\n")
            count += 1
    return count, defects


@command
def main(arguments: Arguments) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m echat.train.tools.speech_ids", description="Write the speech ids of manifests."
    )
    parser.add_argument("tokenizer", type=Path, help="speech tokenizer folder")
    parser.add_argument("manifests", type=Path, nargs="+", help="manifest.jsonl files")
    options = parser.parse_args(arguments)
    tokenizer = load_speech_tokenizer(options.tokenizer)
    for manifest in options.manifests:
        count, defects = write_speech_ids(tokenizer, manifest)
        print(f"{manifest}: ids of {count} utterances" + (f"; left out:\n{defects}" if defects else ""))


if __name__ == "__main__":
    sys.exit(main())
