# SPDX-License-Identifier: BSD-3-Clause
"""`Exported`: a file of ``maskattn export``, called as the network that it was made of.

An export is a folder with the file and ``export.json``, which says what the file takes and gives.
ONNX Runtime and OpenVINO run ONNX files, torch the other formats.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskattn_kernels.common.errors import CommandError
from maskattn_kernels.common.text import quoted
from maskattn_kernels.segmentation.data.frame import GREY
from maskattn_kernels.segmentation.model.network import Outputs
from maskattn_kernels.segmentation.sessions import Session, import_runtime, open_session

__all__ = [
    "DESCRIPTION",
    "HINTS",
    "MAPS",
    "RUNTIMES",
    "Exported",
    "RuntimeMissing",
    "runtime_version",
    "runtimes_of",
]

DESCRIPTION = "export.json"
MAPS = ("logits", "center", "offset", "distance")
"""The outputs of a file that are those of a network."""
RUNTIMES = {"torch": ("pt2", "aoti"), "onnxruntime": ("onnx",), "openvino": ("onnx",)}
"""The formats that each runtime runs."""
_EXTRAS = {"onnxruntime": "onnx", "openvino": "openvino"}
HINTS = {torch.float32: "f32", torch.bfloat16: "bf16"}
"""What OpenVINO calls the dtypes that it computes in."""


class RuntimeMissing(CommandError):
    """The package of a runtime is not installed."""


def runtimes_of(kind: str) -> tuple[str, ...]:
    """The runtimes that run a format.

    Args:
        kind: "onnx", "pt2" or "aoti".

    Example:
        >>> from maskattn_kernels.segmentation.runtimes import runtimes_of
        >>> runtimes_of("onnx")
        ('onnxruntime', 'openvino')
    """
    return tuple(name for name, kinds in RUNTIMES.items() if kind in kinds)


class Exported(nn.Module):
    """An exported network in a runtime; called with images, it gives `Outputs`.

    Args:
        folder: that ``maskattn export`` wrote.
        runtime: a name in `RUNTIMES`.
        dtype: that OpenVINO computes in, float32 or bfloat16; others compute in that of the file.

    Attributes:
        description: what ``export.json`` says.
        size: height and width of the images that the file takes.
        version: of the runtime.
        name: of the runtime, with its version.

    Raises:
        ValueError: the folder is no export, or the runtime does not run its format or dtype.
        RuntimeMissing: the runtime is not installed.

    Shapes:
        image uint8 (B,3,h,w), of the file's size or smaller: what is missing at the right and below
        is filled with grey, and cut off the outputs.
    """

    def __init__(
        self, folder: str | Path, runtime: str, dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__()
        self.description = _description(Path(folder))
        kind = self.description["kind"]
        if runtime not in runtimes_of(kind):
            raise ValueError(
                f"runtime: expected {quoted(runtimes_of(kind))} for {folder}, a file in the format "
                f'"{kind}", got "{runtime}"'
            )
        if dtype != torch.float32 and runtime != "openvino":
            raise ValueError(
                f'precision: expected float32 with the runtime "{runtime}", which computes in the '
                f"precision of the file, got {str(dtype).removeprefix('torch.')}"
            )
        height, width = self.description["size"]
        self.size: tuple[int, int] = (height, width)
        self.runtime = runtime
        self.version = runtime_version(runtime)
        self.name = f"{runtime} {self.version}"
        self.run = _session(Path(folder) / self.description["file"], kind, runtime, dtype)

    def named(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """The outputs of the file by name, for images in its own layout and batch size."""
        return dict(zip(self.description["outputs"], self.run(images), strict=True))

    def forward(self, image: Tensor) -> Outputs:
        """As `SegmentationNetwork.forward`; without selections and features."""
        if "logits" not in self.description["outputs"]:
            raise ValueError(
                "exported: expected a file with logits, got one with labels only; export it "
                "without --labels_only"
            )
        height, width = image.shape[-2:]
        if height > self.size[0] or width > self.size[1]:
            raise ValueError(
                f"exported: expected images of at most {self.size[0]} x {self.size[1]} pixels, the "
                f"size of the file, got {height} x {width}; export another --size, or take tiles "
                f"(--tiles {self.size[0]}x{self.size[1]})"
            )
        whole = F.pad(image, (0, self.size[1] - width, 0, self.size[0] - height), value=GREY)
        parts = [self.batch(part) for part in whole.split(self.description["batch"] or len(whole))]
        maps = {
            name: torch.from_numpy(np.concatenate([part[name] for part in parts]))
            for name in self.description["outputs"]
            if name in MAPS
        }
        cut = {name: values[..., :height, :width] for name, values in maps.items()}
        center, offset, distance = map(cut.get, ("center", "offset", "distance"))
        return Outputs(cut["logits"], center, offset, None, {}, distance=distance)

    def batch(self, images: Tensor) -> dict[str, np.ndarray]:
        """The outputs by name for images uint8 (B,3,H,W) of the file's size, at most a batch."""
        count = len(images)
        batch = self.description["batch"] or count
        if count < batch:
            images = torch.cat([images, images[-1:].expand(batch - count, -1, -1, -1)])
        if self.description["layout"] == "nhwc":
            images = images.permute(0, 2, 3, 1)
        made = self.named(images.contiguous().numpy())
        return {name: values[:count] for name, values in made.items()}


def _description(folder: Path) -> dict[str, Any]:
    try:
        described = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
        if described["format"] != 1 or not (folder / described["file"]).is_file():
            raise ValueError
    except (OSError, ValueError, KeyError, TypeError):
        raise ValueError(
            f"exported: expected a folder that `maskattn export` wrote, got {folder}"
        ) from None
    return described


def runtime_version(runtime: str) -> str:
    """The version of a runtime.

    Args:
        runtime: a name in `RUNTIMES`.

    Raises:
        RuntimeMissing: it is not installed.

    Example:
        >>> import torch
        >>> from maskattn_kernels.segmentation.runtimes import runtime_version
        >>> runtime_version("torch") == torch.__version__
        True
    """
    if runtime == "torch":
        return torch.__version__
    try:
        return str(import_runtime(runtime).__version__).partition("-")[0]
    except ModuleNotFoundError:
        raise RuntimeMissing(
            f"{runtime} is not installed; pip install 'maskattn_kernels[{_EXTRAS[runtime]}]'"
        ) from None


def _session(path: Path, kind: str, runtime: str, dtype: torch.dtype) -> Session:
    """A function from images to the outputs, with as many threads as torch has."""
    if runtime == "torch":
        return _torch(path, kind)
    return open_session(runtime, path, torch.get_num_threads(), HINTS[dtype])


def _torch(path: Path, kind: str) -> Session:
    if kind == "aoti":
        program: Any = torch._inductor.aoti_load_package(str(path))
    else:
        program = torch.export.load(path).module()

    def run(images: np.ndarray) -> list[np.ndarray]:
        with torch.inference_mode():
            return [t.numpy() for t in program(torch.from_numpy(images))]

    return run
