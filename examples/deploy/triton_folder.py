# SPDX-License-Identifier: BSD-3-Clause
"""A model folder for NVIDIA's Triton Inference Server, made of an export in the format onnx.

    maskattn export nuclei --size 256 256 --batch dynamic --out out/nuclei
    python examples/deploy/triton_folder.py out/nuclei out/models/nuclei
    tritonserver --model-repository out/models      of the image nvcr.io/nvidia/tritonserver

Batches that wait together go through the network together, at most eight images.
"""

import json
import shutil
import sys
from pathlib import Path

CHANNELS = {"center": 1, "offset": 2, "distance": 1}
TYPES = {"labels": "TYPE_UINT8", "instance": "TYPE_INT32", "object_labels": "TYPE_UINT8"}


def main(export: Path, folder: Path) -> None:
    described = json.loads((export / "export.json").read_text(encoding="utf-8"))
    if described["kind"] != "onnx" or described["batch"] is not None:
        sys.exit("expected an export with --format onnx --batch dynamic")
    sides, classes = described["size"], len(described["classes"]["names"])
    image = [*sides, 3] if described["layout"] == "nhwc" else [3, *sides]
    outputs = []
    for name in described["outputs"]:
        channels = [] if name in ("labels", "instance") else [CHANNELS.get(name, classes)]
        kind = TYPES.get(name, "TYPE_FP32")
        dims = [*channels, *sides]
        if name.startswith("object_"):
            dims = [described["max_objects"]]
        outputs.append(f'  {{ name: "{name}" data_type: {kind} dims: {dims} }}')
    config = [
        f'name: "{folder.name}"',
        'backend: "onnxruntime"',
        "max_batch_size: 8",
        f'input [\n  {{ name: "image" data_type: TYPE_UINT8 dims: {image} }}\n]',
        "output [\n" + ",\n".join(outputs) + "\n]",
        "dynamic_batching { max_queue_delay_microseconds: 2000 }",
    ]
    (folder / "1").mkdir(parents=True)
    shutil.copy(export / described["file"], folder / "1" / "model.onnx")
    (folder / "config.pbtxt").write_text("\n".join(config) + "\n", encoding="utf-8")
    print(f"written: {folder}")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: triton_folder.py EXPORT FOLDER")
    main(Path(sys.argv[1]), Path(sys.argv[2]))
