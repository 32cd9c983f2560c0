"""Optional packages: which extra of the distribution brings each, and how to install it, in one wording."""

from __future__ import annotations

DISTRIBUTION = "echat-speech"  # what pip installs; the package and the command are called echat
EXTRA_OF = {  # import name of an optional package -> the smallest extra that brings it
    "matplotlib": "train",
    "peft": "train",
    "tensorboard": "train",
    "pyworld": "corpus",
    "scipy": "corpus",
    "ttspico": "pico",
    "jiwer": "eval",
    "av": "media",
    "onnxruntime": "onnx",
    "datasets": "datasets",
    "pyarrow": "datasets",
    "ray": "ray",
    "fastapi": "serve",
    "prometheus_client": "serve",
    "python_multipart": "serve",
    "silero_vad": "serve",
    "uvicorn": "serve",
    "websockets": "serve",
    "gradio": "studio",
    "sounddevice": "talk",
}


def how_to_install(module: str) -> str:
    """The command that brings an optional package."""
    return f"pip install '{DISTRIBUTION}[{EXTRA_OF[module]}]'"


def missing(module: str, needed_for: str) -> str:
    """The one sentence about an optional package that is not installed."""
    return f"{needed_for}: expected the Python package {module}, found none; {how_to_install(module)}"
