# SPDX-License-Identifier: BSD-3-Clause
"""Programs of torch: a ``.pt2`` for torch in Python, or compiled for programs without Python.

Both keep our op, which works only on the selected tokens: what runs them loads the library of this
package before, by importing it or by ``dlopen``.
"""

import json
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

from maskattn_kernels.models.inference import folded
from maskattn_kernels.segmentation.exporting.graph import (
    ImageToLabels,
    dynamic_shapes,
    example_image,
)
from maskattn_kernels.segmentation.model.network import SegmentationNetwork

__all__ = ["EXTRA_FILE", "compile_program", "write_program"]

EXTRA_FILE = "maskattn.json"
"""Name of the description inside of a ``.pt2`` of `write_program`."""


def write_program(path: Path, network: SegmentationNetwork, description: dict[str, Any]) -> None:
    """Write a network as a program for `torch.export.load`.

    Args:
        path: of the file.
        network: in eval mode.
        description: as in ``export.json``; it is kept in the file, as JSON.
    """
    with warnings.catch_warnings():
        # Of weights that are views, whole ones are saved; it warns of that on CUDA they may not be.
        warnings.filterwarnings("ignore", message="No complete tensor found")
        program = _program(network, description)
        torch.export.save(program, path, extra_files={EXTRA_FILE: json.dumps(description)})


def compile_program(path: Path, network: SegmentationNetwork, description: dict[str, Any]) -> None:
    """Compile a network with AOTInductor for this kind of processor, which takes a minute or more.

    Args:
        path: of the package; its name ends with ``.pt2``.
        network: in eval mode.
        description: as in ``export.json``; it is kept in the package's metadata, as JSON.
    """
    options = {"freezing": True, "aot_inductor.metadata": {"maskattn": json.dumps(description)}}
    with torch.no_grad():
        torch._inductor.aoti_compile_and_package(
            _program(network, description), package_path=str(path), inductor_configs=options
        )


def _program(network: nn.Module, description: dict[str, Any]) -> torch.export.ExportedProgram:
    if description["precision"] == "bf16":
        network = folded(network, torch.bfloat16)
    graph, image = ImageToLabels(network, description).eval(), example_image(description)
    with torch.no_grad():
        return torch.export.export(graph, (image,), dynamic_shapes=dynamic_shapes(description))
