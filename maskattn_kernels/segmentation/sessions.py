# SPDX-License-Identifier: BSD-3-Clause
"""Sessions of ONNX Runtime and OpenVINO, without torch: `Exported` opens them.

As a program it opens one by itself, so that the memory of a process without torch can be measured:

    python sessions.py RUNTIME FILE THREADS PRECISION IMAGES.npz

It runs the images, prints "ready", and ends when its input does.
"""

import functools
import os
import sys
import threading
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["Session", "import_runtime", "open_session"]

Session = Callable[[np.ndarray], list[np.ndarray]]


def open_session(runtime: str, path: Path, threads: int, precision: str = "f32") -> Session:
    """A function from images to the outputs of an ONNX file.

    Args:
        runtime: "onnxruntime" or "openvino".
        path: of the file.
        threads: that compute.
        precision: that OpenVINO computes in, "f32" or "bf16"; ONNX Runtime computes in that of the
            file.

    Raises:
        ModuleNotFoundError: the runtime is not installed.
        ValueError: OpenVINO does not compute in the precision on this processor.
    """
    if runtime == "onnxruntime":
        return _onnxruntime(path, threads)
    return _openvino(path, threads, precision)


def import_runtime(runtime: str) -> Any:
    """The package of a runtime, which reports nothing about its use.

    Left alone, both write an identifier into the user's home and report to their makers: ONNX
    Runtime (from 1.29) unless ORT_DISABLE_TELEMETRY is set, which stays as the user has set it;
    OpenVINO on import, where it finds the package openvino_telemetry.

    Args:
        runtime: "onnxruntime" or "openvino".

    Raises:
        ModuleNotFoundError: it is not installed.
    """
    if runtime == "onnxruntime":
        os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
        return import_module(runtime)
    modules: dict[str, Any] = sys.modules
    modules.setdefault("openvino_telemetry", None)  # as if it were not installed
    try:
        return import_module(runtime)
    finally:
        if modules["openvino_telemetry"] is None:
            del modules["openvino_telemetry"]


def _onnxruntime(path: Path, threads: int) -> Session:
    onnxruntime = import_runtime("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda images: session.run(None, {"image": images})


@functools.cache
def _openvino_core() -> Any:
    """OpenVINO's core, one for as long as the process runs.

    The CPU plugin of each core gives the thread that loads it a stack for signal handlers, and
    unmaps that with the core. Where two cores end in another order than the reverse, or in another
    thread, the thread keeps a stack that is gone, and the next Ctrl-C ends the process by a fault.
    """
    return import_runtime("openvino").Core()


def _openvino(path: Path, threads: int, precision: str) -> Session:
    # Without the hint OpenVINO computes in bfloat16 where the processor can.
    settings = {
        "INFERENCE_PRECISION_HINT": precision,
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
    }
    compiled = _openvino_core().compile_model(str(path), "CPU", settings)
    used = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    if used != precision:  # it falls back without a word
        raise ValueError(
            f"precision: expected float32, as OpenVINO computes in {used} on this processor, got "
            f"{precision}"
        )
    own = threading.local()  # a request runs in one thread at a time

    def run(images: np.ndarray) -> list[np.ndarray]:
        if not hasattr(own, "request"):
            own.request = compiled.create_infer_request()
        request = own.request
        request.infer({0: images}, share_inputs=True)
        return [request.get_output_tensor(i).data.copy() for i in range(len(compiled.outputs))]

    return run


if __name__ == "__main__":
    _runtime, _file, _threads, _precision, _images = sys.argv[1:]
    _run = open_session(_runtime, Path(_file), int(_threads), _precision)
    for _image in np.load(_images).values():
        _run(_image)
    print("ready", flush=True)
    sys.stdin.read()
