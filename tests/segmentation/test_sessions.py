# SPDX-License-Identifier: BSD-3-Clause
"""Sessions of other runtimes leave the process and its user alone."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import gc, os, signal, sys
from pathlib import Path
import numpy as np
from maskattn_kernels.segmentation.sessions import open_session

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
runtime, path = sys.argv[1], Path(sys.argv[2])
sessions = [open_session(runtime, path, threads=1) for _ in range(2)]
while sessions:  # the first goes first
    sessions.pop(0)(np.ones((1, 3, 4, 4), np.float32))
    gc.collect()
try:
    os.kill(os.getpid(), signal.SIGINT)
except KeyboardInterrupt:
    print("interrupted")
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A small ONNX file."""
    onnx = pytest.importorskip("onnx", reason="needs the extra onnx")
    from onnx import TensorProto, helper

    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, 4, 4])
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, [1, 3, 4, 4])
    graph = helper.make_graph([helper.make_node("Relu", ["image"], ["out"])], "g", [image], [out])
    opset = helper.make_opsetid("", 18)
    onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=9), tmp_path / "a.onnx")
    return tmp_path / "a.onnx"


RUNTIMES = pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])


@RUNTIMES
def test_ctrl_c_interrupts_after_the_sessions_are_gone(runtime: str, path: Path) -> None:
    pytest.importorskip(runtime, reason=f"needs the package {runtime}")
    command = [sys.executable, "-c", PROGRAM, runtime, str(path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "interrupted\n"), done.stderr


@RUNTIMES
@pytest.mark.parametrize(
    "call",
    [
        "sessions.open_session(runtime, Path(path), threads=1)",
        "runtimes.runtime_version(runtime); sessions.open_session(runtime, Path(path), threads=1)",
    ],
    ids=["session", "version first"],
)
def test_nothing_is_kept_of_the_user(runtime: str, call: str, path: Path) -> None:
    """No identifier in the home or cache folder, from which a runtime could report."""
    pytest.importorskip(runtime, reason=f"needs the package {runtime}")
    home = path.parent / "home"
    home.mkdir()
    program = (
        "import sys; from pathlib import Path; runtime, path = sys.argv[1:]; "
        f"from maskattn_kernels.segmentation import runtimes, sessions; {call}"
    )
    kept = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH")  # nothing that says "CI"
    environment = {name: os.environ[name] for name in kept if name in os.environ}
    environment |= {"HOME": str(home), "XDG_CACHE_HOME": str(home / "cache")}
    command = [sys.executable, "-c", program, runtime, str(path)]
    subprocess.run(command, env=environment, check=True)
    assert [p for p in home.rglob("*") if p.is_file()] == []
