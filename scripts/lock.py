"""constraints.txt anew: what pip resolves today for every extra, as exact versions for all supported Pythons.

    python3.11 scripts/lock.py

Run it with the oldest supported Python: newer versions of a package may have dropped that one, while the
versions it gets are offered for the newer ones too. Nothing is installed. torch is not resolved but stated
here, because it decides which numbers come out, and without its local label, so that pip may take the CPU
build or a CUDA one.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
TORCH = "torch==2.13.0"
EXTRAS = "dev,pico,ray"
OWN = {"echat-speech", "torch"}
ONLY_CUDA = re.compile(r"nvidia-|cuda-|triton$")  # parts of a CUDA build of torch, which pins them itself
HEAD = f"""\
# Exact versions for everybody: pip install -c constraints.txt -e '.[dev]'
# Written by scripts/lock.py out of pyproject.toml; run it again after a change there.
{TORCH}
"""


def resolved() -> list[tuple[str, str]]:
    """(name, version) of everything that pip would install for all extras."""
    words = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed"]
    words += ["--report", "-", TORCH, f"{ROOT}[{EXTRAS}]"]
    report = json.loads(subprocess.run(words, check=True, stdout=subprocess.PIPE).stdout)
    found = [(entry["metadata"]["name"], entry["metadata"]["version"]) for entry in report["install"]]
    return sorted((re.sub(r"[-_.]+", "-", name).lower(), version) for name, version in found)


def main() -> None:
    pins = [
        f"{name}=={version}\n"
        for name, version in resolved()
        if name not in OWN and not ONLY_CUDA.match(name)
    ]
    (ROOT / "constraints.txt").write_text(HEAD + "".join(pins), encoding="utf-8")
    print(f"constraints.txt: {len(pins) + 1} packages")


if __name__ == "__main__":
    if sys.version_info[:2] != (3, 11):
        sys.exit(f"expected Python 3.11, the oldest supported one, found {sys.version.split()[0]}")
    main()
