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

from maskattn_kernels.common.extras import import_attribute
from maskattn_kernels.models.lowering import lowered
from maskattn_kernels.segmentation.exporting.graph import (
    ImageToLabels,
    dynamic_shapes,
    example_image,
)
from maskattn_kernels.segmentation.exporting.tensorrt import with_types_of_tensorrt
from maskattn_kernels.segmentation.model.network import SegmentationNetwork

__all__ = ["METADATA", "OPSET", "check_writer", "half_weights", "write_onnx"]

METADATA = "maskattn"
"""Key of the description among the metadata of a file."""
OPSET = 20
_LEAST = 64  # values of a weight that is worth a cast


def check_writer() -> None:
    """Whether files in ONNX can be written.

    Raises:
        ModuleNotFoundError: onnx or onnxscript is missing; the message says how to install it.
    """
    for package in ("onnx", "onnxscript"):
        import_attribute(f"{package}:__name__", "onnx")


def write_onnx(path: Path, network: SegmentationNetwork, description: dict[str, Any]) -> None:
    """Write a network as one file in ONNX.

    Args:
        path: of the file.
        network: in eval mode; its masks become part of the graph, see `lowered`.
        description: as in ``export.json``, which says the form of the file and is kept in its
            metadata as JSON. With "precision" "fp16", weights are in float16.

    Raises:
        ValueError: a selector cannot be lowered, or a weight is too large for float16.
        ModuleNotFoundError: onnx or onnxscript is missing.
    """
    check_writer()
    import onnx

    first = torch.zeros(1, 3, *description["size"], dtype=torch.uint8)
    graph = ImageToLabels(lowered(network, first), description).eval()
    with _quiet(), torch.no_grad():
        torch.onnx.export(
            graph,
            (example_image(description),),
            path,
            input_names=["image"],
            output_names=description["outputs"],
            opset_version=OPSET,
            dynamic_shapes=dynamic_shapes(description),
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    model = onnx.load(path)
    with_types_of_tensorrt(model)
    if description["precision"] == "fp16":
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
