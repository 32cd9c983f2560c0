"""System and user prompts, each written once, in YAML beside this file."""

from __future__ import annotations

from functools import cache
from importlib import resources

import yaml


def system_prompt(name: str) -> str:
    """The system text of that name."""
    return _lookup("system", name)


def user_prompt(name: str) -> str:
    """The instruction of that name, spoken of the sound that follows it."""
    return _lookup("user", name)


def all_prompts() -> list[str]:
    """Every prompt text, e.g. to train a tokenizer on."""
    return [*_read("system").values(), *_read("user").values()]


def _lookup(kind: str, name: str) -> str:
    prompts = _read(kind)
    if name not in prompts:
        raise ValueError(f"{kind} prompt: expected one of {', '.join(prompts)}, found {name!r}")
    return prompts[name]


@cache
def _read(kind: str) -> dict[str, str]:
    text = resources.files(__package__).joinpath(f"{kind}.yaml").read_text(encoding="utf-8")
    return dict(yaml.safe_load(text))
