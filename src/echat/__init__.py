"""echat: a spoken question in, an empathetic spoken answer out.

Importing the package does nothing heavy; torch is loaded by the first call that needs it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from echat.infer.engine import Engine

__version__ = "0.1.0"
__all__ = ["__version__", "load"]


def load(name_or_path: str | Path, device: str = "cpu", dtype: Any = None) -> Engine:
    """A model ready to listen and answer.

    ``name_or_path`` is the name of a model that ships with the package ("echat-tiny"), a model folder, or a
    released ``.pt`` beside its Qwen2 folder. ``dtype`` is a ``torch.dtype``; None: bfloat16 where the weights
    are stored so or the device is no CPU, else float32.
    """
    from echat.infer import loading

    return loading.load(name_or_path, device=device, dtype=dtype)
