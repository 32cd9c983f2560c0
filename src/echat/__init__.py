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


def load(
    name_or_path: str | Path, device: str = "cpu", dtype: Any = None, threads: int | None = None
) -> Engine:
    """An inference engine: a model with tokenizer and, where it has one, speech synthesis.

    ``name_or_path`` is the name of a model that ships with the package ("echat-tiny"), a model folder, a
    released ``.pt`` beside its Qwen2 folder, "osum-echat" (the released weights: fetched and converted once),
    or "OWNER/NAME" on the model hub. ``device`` is a device of torch, or "auto": cuda where there is one.
    ``dtype`` is a ``torch.dtype``; None: bfloat16 where the weights are stored so or the device is no CPU,
    else float32. ``threads`` is how many CPU threads torch uses from now on in this process; None: as many
    as ``OMP_NUM_THREADS`` says, else one, which is fastest for small models.
    """
    from echat.devices import set_threads
    from echat.infer import loading

    set_threads(threads)
    return loading.load(name_or_path, device=device, dtype=dtype)
