"""Released files -> a model folder that `echat.load` reads: `echat convert`."""

from dataclasses import dataclass
from pathlib import Path

import torch

from echat.checkpoint import CheckpointError, atomic_path
from echat.dialogue.tasks import Profile
from echat.release.cosyvoice_conversion import CosyvoiceReport, convert_cosyvoice
from echat.release.osum_conversion import OsumReport, convert_osum
from echat.release.osum_weights import stated_heads

CARD = """# {name}

Made by `echat convert` from released weights. `echat reply question.wav -m FOLDER -o answer.wav` talks to it.

```
{report}
```

The weights belong to their authors and keep their licences: that of the speech dialogue model (OSUM-EChat),
that of the language model it was trained from (Qwen2.5-3B-Instruct: the Qwen Research License) and that of
the synthesis (CosyVoice).
"""


@dataclass(frozen=True)
class Conversion:
    """What was written where."""

    folder: Path
    dialogue: OsumReport
    token2wav: CosyvoiceReport | None

    def __str__(self) -> str:
        return "\n".join(str(part) for part in (self.dialogue, self.token2wav) if part is not None)


def convert(
    weights: Path,
    llm_folder: Path,
    output: Path,
    token2wav: Path | None = None,
    voice: Path | None = None,
    dtype: torch.dtype = torch.bfloat16,
    profile: Profile = "osum",
) -> Conversion:
    """Write the model folder `output`, which appears whole or not at all; the inputs stay as they are.

    `dtype` is the precision of the dialogue model on disk; token2wav keeps float32. `voice` is a recording
    that becomes the default voice.
    """
    _require_free(output)
    if voice is not None and token2wav is None:
        raise ValueError(f"voice {voice}: expected token2wav files to speak with, found none; give them too")
    heads = stated_heads(weights)
    with atomic_path(output) as folder:
        folder.mkdir()
        dialogue = convert_osum(weights, llm_folder, folder, dtype, profile, **heads)
        speech = convert_cosyvoice(token2wav, folder, voice) if token2wav is not None else None
        done = Conversion(output, dialogue, speech)
        card = CARD.format(name=output.name, report=done)
        (folder / "README.md").write_text(card, encoding="utf-8")
    return done


def _require_free(output: Path) -> None:
    """Nothing of the user's is ever replaced."""
    if output.is_file() or (output.is_dir() and any(output.iterdir())):
        raise CheckpointError(
            f"{output}: expected a new folder to write, found one that holds something; choose another name "
            "or remove it"
        )
