# SPDX-License-Identifier: BSD-3-Clause
"""Sessions of other runtimes leave the process as it was."""

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import gc, os, signal, sys
from pathlib import Path
import numpy as np
from maskattn_kernels.segmentation.sessions import open_session

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


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_ctrl_c_interrupts_after_the_sessions_are_gone(runtime, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx", reason="needs the extra onnx")
    pytest.importorskip(runtime, reason=f"needs the package {runtime}")
    from onnx import TensorProto, helper

    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, 4, 4])
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, [1, 3, 4, 4])
    graph = helper.make_graph([helper.make_node("Relu", ["image"], ["out"])], "g", [image], [out])
    opset = helper.make_opsetid("", 18)
    onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=9), tmp_path / "a.onnx")
    command = [sys.executable, "-c", PROGRAM, runtime, str(tmp_path / "a.onnx")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "interrupted\n"), done.stderr
