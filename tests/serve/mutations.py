"""Mutations of valid messages: a value of another type, too deep, too many or missing."""

from __future__ import annotations

import copy
import random
from typing import Any


def nested(depth: int, of_lists: bool = False) -> Any:
    """A value within so many others."""
    value: Any = 1
    for _ in range(depth):
        value = [value] if of_lists else {"a": value}
    return value


ODD: list[Any] = [
    None,
    True,
    0,
    -1,
    5,
    2**63,
    10**30,
    0.5,
    1e300,
    "",
    "ab",
    "inf",
    "\ud800",
    "half \udc00 a pair",
    "x" * 600,
    [],
    {},
    [1],
    ["ab", None],
    [[]],
    {"id": 5},
    {"id": None},
    {"type": 5},
    {"type": "none"},
    {"\ud800": "\udfff"},
    nested(20),
    nested(70),
    nested(200, of_lists=True),
]


def mutated(message: dict[str, Any], chance: random.Random) -> dict[str, Any]:
    """A copy with one to three values changed; the type of a message rarely."""
    message = copy.deepcopy(message)
    for _ in range(chance.choice([1, 1, 1, 2, 3])):
        places = [item for item in _values_in(message) if item[1] != "type" or chance.random() < 0.2]
        parent, key = chance.choice(places or [(message, "extra")])
        how = chance.randrange(8)
        if how == 0 and isinstance(parent, dict):
            parent.pop(key, None)
        elif how == 1 and isinstance(parent, dict):
            parent[chance.choice(["extra", "voice", "audio", "model", "metadata", "id"])] = chance.choice(ODD)
        elif how == 2:
            parent[key] = [parent.get(key) if isinstance(parent, dict) else parent[key]] * chance.randrange(3)
        else:
            parent[key] = copy.deepcopy(chance.choice(ODD))
    return message


def _values_in(value: Any) -> list[tuple[Any, Any]]:
    """Every value within a value, as its parent and the key."""
    if isinstance(value, dict):
        keys: list[Any] = list(value)
    elif isinstance(value, list):
        keys = list(range(len(value)))
    else:
        return []
    return [item for key in keys for item in [(value, key), *_values_in(value[key])]]
