"""Does this machine reproduce golden numbers? Checks folders of recorded arrays, of two kinds.

A model folder holds a tiny checkpoint with arrays of every stage and greedy generations; a token2wav folder
holds a tiny flow and vocoder with theirs. Every size and id is read from the folder's own `config.json`.
Networks compute on the device and in the precision asked for, features and rules on the CPU.
"""

from collections.abc import Iterator, Sequence
from importlib.resources import files
from pathlib import Path

from echat.infer.check import Check
from echat.infer.place import Place, full_float32

BUNDLED = "assets/verify"  # of the package
MODEL_MARK = "encoder.npz"
TOKEN2WAV_MARK = "hift.npz"


def verify(folders: Sequence[Path] = (), place: Place | None = None, converted: bool = False) -> list[Check]:
    """All checks of the folders; of the bundled ones when none is given."""
    return [
        check for folder in folders or bundled() for check in verify_folder(Path(folder), place, converted)
    ]


def bundled() -> list[Path]:
    """The folders that travel with the package."""
    home = Path(str(files("echat"))) / BUNDLED
    return sorted(path for path in home.iterdir() if path.is_dir())


def verify_folder(folder: Path, place: Place | None = None, converted: bool = False) -> Iterator[Check]:
    """Checks of one folder, which is recognised by its files; without a place on the CPU in float32.

    `converted`: its weights become a model folder first, which is then loaded and checked.
    """
    with full_float32():
        yield from _checks(folder, place or Place(), converted)


def _checks(folder: Path, place: Place, converted: bool) -> Iterator[Check]:
    if (folder / MODEL_MARK).is_file():
        from echat.infer.verify_model import checks

        yield from checks(folder, place, converted)
    elif (folder / TOKEN2WAV_MARK).is_file():
        from echat.infer.verify_token2wav import checks as token2wav_checks

        yield from token2wav_checks(folder, place, converted)
    else:
        found = "no such folder" if not folder.is_dir() else "neither"
        raise ValueError(
            f"{folder}: expected a folder of golden numbers with {MODEL_MARK} (model) or {TOKEN2WAV_MARK} "
            f"(token2wav), found {found}; check the path"
        )
