"""System prompts, user prompts and typed turns, each defined once, in YAML beside this file."""

from __future__ import annotations

from functools import cache
from importlib import resources
from typing import Any

import yaml


def system_prompt(name: str, *, short: bool = False) -> str:
    """The system text of that name; ``short``: as the profile ``"echat"`` words it."""
    return _lookup("system", name, short)


def user_prompt(name: str, *, short: bool = False) -> str:
    """The instruction of that name, about the audio that follows it; ``short`` as above."""
    return _lookup("user", name, short)


def typed_turn(name: str) -> str:
    """A stand-in for the user turn where the model speaks first."""
    return str(_read("turns")[name])


def short_prompts() -> list[str]:
    """Every prompt of the profile ``"echat"``, e.g. to train a tokenizer on."""
    return [text for kind in _read("echat").values() for text in kind.values()]


def _lookup(kind: str, name: str, short: bool) -> str:
    prompts = _read("echat")[kind] if short else _read(kind)
    if name not in prompts:
        raise ValueError(f"{kind} prompt: expected one of {', '.join(prompts)}, found {name!r}")
    return prompts[name]


@cache
def _read(name: str) -> dict[str, Any]:
    text = resources.files(__package__).joinpath(f"{name}.yaml").read_text(encoding="utf-8")
    return dict(yaml.safe_load(text))
