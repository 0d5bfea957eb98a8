# SPDX-License-Identifier: BSD-3-Clause
"""Static int8 quantisation of an ONNX file, by ONNX Runtime's own tool.

Convolutions compute in int8, with a scale for each channel of their weights; the ranges of their
inputs are those of calibration images. What stays in float32: the first convolution, which reads
the image (in int8, it alone cost the network "nuclei" 4 points of mIoU); mask heads and the last
layers, as their results are compared with each other; attention, which is no convolution.
"""

import copy
import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from torch import Tensor

from maskattn_kernels.common.errors import CommandError
from maskattn_kernels.common.extras import import_attribute
from maskattn_kernels.nn import MaskHead
from maskattn_kernels.segmentation.checkpoints import Checkpoint
from maskattn_kernels.segmentation.data.sample import SegmentationDataset
from maskattn_kernels.segmentation.model.network import SegmentationNetwork
from maskattn_kernels.segmentation.runtimes import Exported

__all__ = ["MAX_DROP", "LessAccurate", "accuracy", "check_drop", "quantise"]

MAX_DROP = 0.5
"""Points of mIoU."""
_SCORING = "maskattn_kernels.segmentation.scoring.evaluation"


class LessAccurate(CommandError):
    """A quantised file scores lower than is allowed."""


def quantise(path: Path, network: SegmentationNetwork, images: Tensor, layout: str) -> None:
    """Quantise a file in place.

    Args:
        path: of the file, for batches of one or of any size.
        network: that it was made of.
        images: uint8 (n,3,H,W), for calibration.
        layout: of the file, in `LAYOUTS`.

    Raises:
        ModuleNotFoundError: onnx or onnxruntime is missing.
    """
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

    class Images(CalibrationDataReader):
        def __init__(self) -> None:
            self.left: Iterator[Tensor] = iter(images.split(1))

        def get_next(self) -> dict[str, np.ndarray] | None:
            image = next(self.left, None)
            if image is None:
                return None
            image = image.permute(0, 2, 3, 1) if layout == "nhwc" else image
            return {"image": image.contiguous().numpy()}

    exact = {f"network.{name}.weight" for name in _compared(network)}
    model = onnx.load(path)
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    excluded = [node.name for node in convolutions[1:] if exact & set(node.input)]
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)  # it recommends a preparation that this graph has had
    try:
        quantize_static(
            model,
            path,
            Images(),
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            op_types_to_quantize=["Conv"],
            nodes_to_exclude=[convolutions[0].name, *excluded],
        )
    finally:
        logging.disable(before)


def _compared(network: SegmentationNetwork) -> list[str]:
    """Names of the layers whose results are compared with each other."""
    last = {id(layer) for layer in (*network.output_layers(), *network.body.output_layers())}
    names = []
    for name, module in network.named_modules():
        if id(module) in last:
            names.append(name)
        elif isinstance(module, MaskHead):
            names.append(f"{name}.conv")
    return names


def accuracy(checkpoint: Checkpoint, dataset: SegmentationDataset, folder: Path) -> float:
    """The mIoU of an exported file on labelled images, 0 to 100, in ONNX Runtime.

    Args:
        checkpoint: that the file was made of.
        dataset: with labels of its classes.
        folder: of the file. Images are fitted into its size.
    """
    # Scores need packages of the extra train, other exports do not.
    evaluate = import_attribute(f"{_SCORING}:evaluate", "train")
    fitted = copy.copy(checkpoint)
    fitted.frame = "squeeze" if checkpoint.frame == "squeeze" else "fit"
    scores = evaluate(fitted, dataset, device="cpu", exported=Exported(folder, "onnxruntime"))
    return scores["original size"]["mean"]["mIoU"]


def check_drop(exact: float, quantised: float, max_drop: float) -> None:
    """Compare two scores, 0 to 100.

    Args:
        exact, quantised: before and after the quantisation.
        max_drop: that is allowed.

    Raises:
        LessAccurate: the second one is lower by more, or not a number.
    """
    if not exact - quantised <= max_drop:
        raise LessAccurate(
            f"int8: expected at most {max_drop:g} points of mIoU less than float32, got "
            f"{exact - quantised:.2f} ({quantised:.2f} in place of {exact:.2f}); nothing was "
            "written: calibrate on more images, or allow more with --max_drop"
        )
