"""ONNX sessions on one CPU thread, and the check of the released speech tokenizer by its hash."""

import hashlib
from pathlib import Path
from typing import Any

from echat.model_files import SPEECH_TOKENIZER_FILE
from echat.onnx_runtime import cpu_session
from echat.optional_dependencies import missing

# sha256 of the released 25 Hz speech tokenizer; the 50 Hz one carries the same file name
_TOKENIZER_25HZ_SHA256 = "56285ddd4a83e883ee0cb9f8d69c1089b53a94b1f78ff7e4a0224a27eb4cb486"
_TOKENIZER_50HZ_SHA256_START = "23b5a723"


def onnx_session(path: str | Path) -> Any:
    """An onnxruntime session on the CPU."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(
            f"{path}: expected an ONNX file, found none; copy it beside the other released weights"
        )
    try:
        return cpu_session(str(path))
    except ImportError as error:
        raise ValueError(missing("onnxruntime", str(path))) from error
    except Exception as error:  # onnxruntime's errors share no base class of their own
        raise ValueError(
            f"{path}: expected an ONNX network, found a file that does not load: {error}"
        ) from error


def released_tokenizer_note(path: Path) -> str:
    """Whether a file is the released 25 Hz speech tokenizer, in words; ValueError for the 50 Hz one.

    Both carry the same file name, and the wrong one spoils every voice without a sign.
    """
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found.startswith(_TOKENIZER_50HZ_SHA256_START):
        raise ValueError(
            f"{path}: expected the 25 Hz tokenizer, found the 50 Hz one of the same name; take "
            f"{SPEECH_TOKENIZER_FILE} of CosyVoice-300M-25Hz (522,625,011 bytes)"
        )
    is_released = found == _TOKENIZER_25HZ_SHA256
    return "the released 25 Hz one" if is_released else f"of unknown sha256 {found[:8]}..."
