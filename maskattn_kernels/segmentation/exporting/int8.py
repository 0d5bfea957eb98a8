# SPDX-License-Identifier: BSD-3-Clause
"""Static int8 quantisation of an ONNX file, by ONNX Runtime's own tool.

Convolutions compute in int8, with a scale for each channel of their weights; the ranges of their
inputs are those of calibration images. What stays in float32: the first convolution, which reads
the image (in int8, it alone cost the network "nuclei" 4 points of mIoU); mask heads and the last
layers, as their results are compared with each other; attention, which is no convolution.

What it costs is told by images that had no part in it: the first half of the labelled images, every
other one, says whether a file is kept; the second half, how much it loses; those that it is
calibrated on are none of them.
"""

import copy
import hashlib
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from maskattn_kernels.common.errors import CommandError
from maskattn_kernels.common.extras import import_attribute
from maskattn_kernels.nn import MaskHead
from maskattn_kernels.segmentation.checkpoints import Checkpoint
from maskattn_kernels.segmentation.data.errors import DataError
from maskattn_kernels.segmentation.data.parts import Part
from maskattn_kernels.segmentation.data.sample import Sample, SegmentationDataset
from maskattn_kernels.segmentation.model.network import SegmentationNetwork
from maskattn_kernels.segmentation.runtimes import Exported
from maskattn_kernels.segmentation.sessions import import_runtime

__all__ = ["MAX_DROP", "LessAccurate", "apart", "quantise", "quantise_and_score"]

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

    import_runtime("onnxruntime")
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


def apart(samples: Sequence[Sample], dataset: SegmentationDataset) -> list[Sample]:
    """Those samples whose pixels are not those of an image of a data set.

    Args:
        samples: to calibrate on.
        dataset: that is scored.

    Raises:
        DataError: there are none.
    """
    scored = {_pixels(dataset[place]) for place in range(len(dataset))}
    others = [sample for sample in samples if _pixels(sample) not in scored]
    if not others:
        raise DataError(
            f"calibrate: expected images that are not scored, got {len(samples)} that all are"
        )
    return others


def _pixels(sample: Sample) -> tuple[tuple[int, ...], bytes]:
    return sample.image.shape, hashlib.sha256(sample.image.tobytes()).digest()


def quantise_and_score(
    checkpoint: Checkpoint,
    path: Path,
    images: Tensor,
    layout: str,
    data: SegmentationDataset,
    max_drop: float,
) -> dict[str, Any]:
    """Quantise a file in place, if it scores well after it.

    Args:
        checkpoint: that the file was made of.
        path: of the file; its folder is an export.
        images, layout: as in `quantise`.
        data: labelled images. Every other one decides, the rest tell what the file loses.
        max_drop: points of mIoU that it may lose on those that decide.

    Returns:
        "mIoU", 0 to 100, of "fp32" and "int8" on the images that did not decide, and in
        "int8_images" how many were "calibrated", "decided" on and "scored".

    Raises:
        LessAccurate: it loses more.
        DataError: there is one labelled image only.
    """
    if len(data) < 2:
        raise DataError(f"data: expected two labelled images or more with int8, got {len(data)}")
    decide, score = (Part(data, range(first, len(data), 2)) for first in (0, 1))
    exact = [_accuracy(checkpoint, part, path.parent) for part in (decide, score)]
    quantise(path, checkpoint.network, images, layout)
    _check_drop(exact[0], _accuracy(checkpoint, decide, path.parent), max_drop)
    counts = {"calibrated": len(images), "decided": len(decide), "scored": len(score)}
    scores = {"fp32": exact[1], "int8": _accuracy(checkpoint, score, path.parent)}
    return {"mIoU": scores, "int8_images": counts}


def _accuracy(checkpoint: Checkpoint, dataset: SegmentationDataset, folder: Path) -> float:
    """The mIoU of an exported file in ONNX Runtime; images are fitted into its size."""
    # Scores need packages of the extra train, other exports do not.
    evaluate = import_attribute(f"{_SCORING}:evaluate", "train")
    fitted = copy.copy(checkpoint)
    fitted.frame = "squeeze" if checkpoint.frame == "squeeze" else "fit"
    scores = evaluate(fitted, dataset, device="cpu", exported=Exported(folder, "onnxruntime"))
    return scores["original size"]["mean"]["mIoU"]


def _check_drop(exact: float, quantised: float, max_drop: float) -> None:
    if not exact - quantised <= max_drop:  # also where it is not a number
        raise LessAccurate(
            f"int8: expected at most {max_drop:g} points of mIoU less than float32, got "
            f"{exact - quantised:.2f} ({quantised:.2f} in place of {exact:.2f}); nothing was "
            "written: calibrate on more images, or allow more with --max_drop"
        )
