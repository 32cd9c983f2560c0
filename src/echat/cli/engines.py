"""The engine of a command: a model on a device in a precision, and a voice."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from echat.infer.engine import Engine
    from echat.token2wav.voice import VoicePrompt


def open_engine(model: str, device: str, speaks: bool = False, precision: str | None = None) -> Engine:
    """The engine of a model by name or folder, on a device that exists; ``speaks``: with a voice."""
    import echat
    from echat.devices import present_device

    if device == "auto" and precision is not None:
        device = "cpu"  # packed weights are for CPUs
    present_device(device)
    engine = echat.load(model, device=device)
    if speaks and engine.token2wav is None:
        raise ValueError(
            f"model {model}: expected a token2wav folder to speak with, found none; leave out -o or add one"
        )
    return engine if precision is None else optimized(engine, precision)


def optimized(engine: Engine, precision: str) -> Engine:
    """The engine in another precision, which only a CPU offers."""
    from typing import get_args

    from echat.kernels.packed_linear import Precision

    known = get_args(Precision)
    if precision not in known:
        raise ValueError(f"--precision: expected one of {', '.join(known)}, found {precision!r}")
    if engine.model.speech_embedding.weight.device.type != "cpu":
        raise ValueError(f"--precision {precision}: expected --device cpu, found another; leave it out there")
    return engine.optimized(precision)  # type: ignore[arg-type]


def resolve_voice(engine: Engine, name_or_path: str | None) -> VoicePrompt | str | None:
    """A voice of the model by name, the voice of a recording, or None for the model's own."""
    if name_or_path is None or not Path(name_or_path).suffix:
        return name_or_path
    return engine.voice_from(name_or_path)
