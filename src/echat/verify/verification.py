"""Golden tests of this machine: `echat verify` compares every stage with folders of recorded arrays.

A model folder has a tiny checkpoint with arrays of every stage and greedy generations; a token2wav folder has
a tiny flow and vocoder with theirs. Every size and id is read from the `config.json` of the folder. Networks
compute on the given device and in the given precision, features and decoding rules on the CPU.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

from echat.devices import full_float32
from echat.verify.comparison import Backend, Check

BUNDLED = "assets/verify"  # of the package
MODEL_MARK = "encoder.npz"
TOKEN2WAV_MARK = "hift.npz"


def verify(
    folders: Sequence[Path] = (), backend: Backend | None = None, converted: bool = False
) -> list[Check]:
    """All checks of the folders; of the bundled ones when none is given."""
    return [
        check
        for folder in folders or bundled_folders()
        for check in verify_folder(Path(folder), backend, converted)
    ]


def bundled_folders() -> list[Path]:
    """The golden folders of the package."""
    home = Path(str(files("echat"))) / BUNDLED
    return sorted(path for path in home.iterdir() if path.is_dir())


def verify_folder(folder: Path, backend: Backend | None = None, converted: bool = False) -> Iterator[Check]:
    """Checks of one folder, whose kind is recognised by its files; without a backend on the CPU in float32.

    `converted`: its weights are first converted to a model folder, which is loaded and checked.
    """
    with full_float32():
        yield from _checks(folder, backend or Backend(), converted)


def _checks(folder: Path, backend: Backend, converted: bool) -> Iterator[Check]:
    if (folder / MODEL_MARK).is_file():
        yield from _model_checks(folder, backend, converted)
    elif (folder / TOKEN2WAV_MARK).is_file():
        from echat.verify.token2wav_checks import checks as token2wav_checks

        yield from token2wav_checks(folder, backend, converted)
    else:
        found = "no such folder" if not folder.is_dir() else "neither"
        raise ValueError(
            f"{folder}: expected a folder of golden numbers with {MODEL_MARK} (model) or {TOKEN2WAV_MARK} "
            f"(token2wav), found {found}; check the path"
        )


def _model_checks(folder: Path, backend: Backend, converted: bool = False) -> Iterator[Check]:
    """Everything that a model folder records."""
    from echat.verify import decoding_checks, feature_checks, generation_checks, model_checks

    golden = model_checks.GoldenModel(folder, backend, converted)
    parts = (
        ("frontend.npz", feature_checks.frontend_checks),
        ("encoder.npz", model_checks.encoder_checks),
        ("forward.json", model_checks.forward_checks),
        ("generate.json", generation_checks.generate_checks),
        ("processors.json", decoding_checks.processor_checks),
    )
    for file, part in parts:
        if (folder / file).is_file():
            for check in part(golden):
                yield replace(check, name=f"{folder.name}/{Path(file).stem}/{check.name}")
