"""Sessions of onnxruntime: on the CPU, with few threads, and without its telemetry."""

import os
from typing import Any


def cpu_session(network: str | bytes, threads: int = 1) -> Any:
    """An inference session of an ONNX file (path) or network (bytes). ImportError without onnxruntime.

    Recent versions of onnxruntime keep an identifier of the machine and records of its use
    below the home folder, for its makers. A program that people talk to does not do that unasked: it is off
    unless the environment of the user says otherwise. onnxruntime reads the variable when it is imported.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(network, options, providers=["CPUExecutionProvider"])
