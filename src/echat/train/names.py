"""Parameters and layers by their names, with globs."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence


def choose(names: Sequence[str], patterns: Sequence[str], key: str, what: str = "parameter") -> set[str]:
    """The names that globs take in and ``!glob`` takes out again, in the order written.

    Raises ValueError, which names the recipe's ``key``, for a glob that matches nothing.
    """
    chosen: set[str] = set()
    for pattern in patterns:
        hits = set(fnmatch.filter(names, pattern.removeprefix("!")))
        if not hits:
            tops = ", ".join(sorted({name.split(".")[0] for name in names})) or "nothing"
            raise ValueError(f"{key}: pattern {pattern!r} matches no {what}; {what}s start with {tops}")
        chosen = chosen - hits if pattern.startswith("!") else chosen | hits
    return chosen
