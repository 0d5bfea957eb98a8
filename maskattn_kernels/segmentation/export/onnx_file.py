# SPDX-License-Identifier: BSD-3-Clause
"""ONNX files: standard operators only, with what they hold described inside."""

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from maskattn_kernels.models.lowering import lowered
from maskattn_kernels.segmentation.export.graph import ImageToLabels
from maskattn_kernels.segmentation.export.tensorrt import with_types_of_tensorrt
from maskattn_kernels.segmentation.model.network import SegmentationNetwork

__all__ = ["METADATA", "OPSET", "half_weights", "write_onnx"]

METADATA = "maskattn"
"""Key of the description among the metadata of a file."""
OPSET = 20
_LEAST = 64  # values of a weight that is worth a cast


def write_onnx(
    path: Path,
    network: SegmentationNetwork,
    image: Tensor,
    names: tuple[str, ...],
    layout: str,
    *,
    dynamic_batch: bool,
    half: bool,
    description: dict[str, Any],
) -> None:
    """Write a network as one file in ONNX.

    Args:
        path: of the file.
        network: in eval mode; its masks become part of the graph, see `lowered`.
        image: uint8, of the shape of the input.
        names: of the outputs, see `output_names`.
        layout: of the image, in `LAYOUTS`.
        dynamic_batch: whether batches have any size; else that of ``image``.
        half: keep weights in float16, from which the graph makes float32: half the file.
        description: kept in the metadata, as JSON.

    Raises:
        ValueError: a selector cannot be lowered, or a weight is too large for float16.
        ModuleNotFoundError: onnx or onnxscript is missing.
    """
    import onnx
    import onnxscript  # noqa: F401  # so that a missing one is told before the work

    channels_first = image.permute(0, 3, 1, 2) if layout == "nhwc" else image
    graph = ImageToLabels(lowered(network, channels_first[:1]), names, layout).eval()
    if dynamic_batch and len(image) == 1:
        image = torch.cat([image, image])  # a size of 1 would be taken for a constant
    shapes = {"image": {0: torch.export.Dim("batch")}} if dynamic_batch else None
    with _quiet(), torch.no_grad():
        torch.onnx.export(
            graph,
            (image,),
            path,
            input_names=["image"],
            output_names=list(names),
            opset_version=OPSET,
            dynamic_shapes=shapes,
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    model = onnx.load(path)
    with_types_of_tensorrt(model)
    if half:
        half_weights(model)
    model.producer_name = "maskattn_kernels"
    # Names of the exporter, with the folders of this machine, are of no use elsewhere.
    del model.metadata_props[:], model.graph.metadata_props[:]
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    onnx.helper.set_model_props(model, {METADATA: json.dumps(description)})
    onnx.checker.check_model(model)
    onnx.save(model, path)


def half_weights(model: Any) -> None:
    """Keeps weights in float16, in place; a cast in the graph makes float32 of each.

    Args:
        model: an ``onnx.ModelProto``.

    Raises:
        ValueError: a weight is too large for float16.
    """
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    casts = []
    for weight in model.graph.initializer:
        values = numpy_helper.to_array(weight)
        if weight.data_type != TensorProto.FLOAT or values.size < _LEAST:
            continue
        with np.errstate(over="ignore"):
            smaller = values.astype(np.float16)
        if not np.isfinite(smaller).all():
            raise ValueError(
                f"precision: expected fp32, as {weight.name} has values that float16 cannot hold, "
                "got fp16"
            )
        name = weight.name
        weight.CopyFrom(numpy_helper.from_array(smaller, f"{name}_float16"))
        casts.append(helper.make_node("Cast", [weight.name], [name], to=TensorProto.FLOAT))
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's remarks, which no user can do anything about."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
