"""An optional judge of whether a turn is whole: any function of the sound so far."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

import numpy as np

# (16 kHz float32 samples (n,) of the turn so far) -> 0.0 certainly goes on ... 1.0 certainly whole
TurnDetector = Callable[[np.ndarray], float]


def turn_detector(place: str) -> TurnDetector:
    """The function at `module:function`."""
    module, colon, name = place.partition(":")
    if not colon:
        raise ValueError(f"turn_detector: expected module:function, found {place!r}")
    try:
        found = getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"turn_detector: expected a function at {place!r}, found none: {error}") from error
    if not callable(found):
        raise ValueError(f"turn_detector: expected a function at {place!r}, found {type(found).__name__}")
    return found  # type: ignore[no-any-return]
