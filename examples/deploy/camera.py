# SPDX-License-Identifier: BSD-3-Clause
"""Labels of a camera or a video, by OpenCV and ONNX Runtime or OpenVINO; no torch is needed.

Its first argument is a folder that ``maskattn export`` wrote:

    maskattn export nuclei --size 256 256 --batch 1 --out out/nuclei
    python examples/deploy/camera.py out/nuclei 0                       the first camera
    python examples/deploy/camera.py out/nuclei film.mp4 --out labelled.avi --runtime openvino
"""

import argparse
import json
import time
from pathlib import Path

import cv2
import numpy as np

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("folder", type=Path, help="that `maskattn export` wrote, in the format onnx")
parser.add_argument("source", help="number of a camera, or a video")
parser.add_argument("--out", help="video with the labels over the pictures; none = a window")
parser.add_argument("--runtime", choices=("onnxruntime", "openvino"), default="onnxruntime")
given = parser.parse_args()
described = json.loads((given.folder / "export.json").read_text(encoding="utf-8"))
if (described["layout"], described["batch"]) not in (("nhwc", 1), ("nhwc", None)):
    parser.error("expected an export with --layout nhwc --batch 1")
height, width = described["size"]
colors = np.array(described["classes"]["colors"], np.uint8)[:, ::-1]  # OpenCV has blue first
file = str(given.folder / described["file"])
if given.runtime == "onnxruntime":
    import onnxruntime

    session = onnxruntime.InferenceSession(file)
    segment = lambda image: session.run(["labels"], {"image": image})[0]  # noqa: E731
else:
    import openvino

    # By default OpenVINO computes in bfloat16 where it can, which changes some labels.
    compiled = openvino.compile_model(file, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    segment = lambda image: compiled(image)["labels"]  # noqa: E731

camera = cv2.VideoCapture(int(given.source) if given.source.isdigit() else given.source)
writer, frames, seconds = None, 0, 0.0
while (read := camera.read())[0]:
    picture = cv2.resize(read[1], (width, height), interpolation=cv2.INTER_AREA)
    start = time.perf_counter()
    labels = segment(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)[None])[0]
    seconds, frames = seconds + time.perf_counter() - start, frames + 1
    shown = cv2.addWeighted(picture, 0.5, colors[labels], 0.5, 0)
    if given.out:
        mjpg = cv2.VideoWriter_fourcc(*"MJPG")
        writer = writer or cv2.VideoWriter(given.out, mjpg, 25, (width, height))
        writer.write(shown)
    else:
        cv2.imshow("q ends", shown)
        if cv2.waitKey(1) == ord("q"):
            break
if writer is not None:
    writer.release()
print(f"{frames} frames, {1e3 * seconds / max(frames, 1):.1f} ms each in the network")
