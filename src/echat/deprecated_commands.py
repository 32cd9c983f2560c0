"""Deprecated commands `python -m echat.MODULE`: each names its replacement on stderr and runs it.

They stay for one version. A module that was a command ends in
`if __name__ == "__main__": run_replacement("echat.MODULE")` and has its row in the table below.
"""

from __future__ import annotations

import sys

REPLACEMENTS = {
    "echat.train": ("train",),
    "echat.train.average": ("average",),
    "echat.train.export": ("export",),
    "echat.train.pack": ("assemble",),
    "echat.train.speech_ids": ("data", "speech-ids"),
}


def run_replacement(module: str) -> None:
    """Run the command that replaces `python -m MODULE` with the same arguments, and leave the process."""
    command = REPLACEMENTS[module]
    new = f"echat {' '.join(command)}"
    print(f"`python -m {module}` is deprecated: use `{new}`, with the same arguments", file=sys.stderr)
    from echat.cli import main

    main([*command, *sys.argv[1:]])
