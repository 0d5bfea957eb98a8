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
from torch import Tensor

from maskattn_kernels.segmentation.export.graph import ImageToLabels
from maskattn_kernels.segmentation.model.network import SegmentationNetwork

__all__ = ["EXTRA_FILE", "compile_program", "write_program"]

EXTRA_FILE = "maskattn.json"
"""Name of the description inside of a ``.pt2`` of `write_program`."""


def exported_program(
    network: SegmentationNetwork,
    image: Tensor,
    names: tuple[str, ...],
    layout: str,
    dynamic_batch: bool,
) -> torch.export.ExportedProgram:
    """A network as a program of torch; arguments as of `write_onnx`."""
    graph = ImageToLabels(network, names, layout).eval()
    if dynamic_batch and len(image) == 1:
        image = torch.cat([image, image])  # a size of 1 would be taken for a constant
    shapes = {"image": {0: torch.export.Dim("batch")}} if dynamic_batch else None
    with torch.no_grad():
        return torch.export.export(graph, (image,), dynamic_shapes=shapes)


def write_program(
    path: Path, program: torch.export.ExportedProgram, description: dict[str, Any]
) -> None:
    """Write a program for `torch.export.load`.

    Args:
        path: of the file.
        program: of `exported_program`.
        description: kept in the file, as JSON.
    """
    with warnings.catch_warnings():
        # Of weights that are views, whole ones are saved; it warns of that on CUDA they may not be.
        warnings.filterwarnings("ignore", message="No complete tensor found")
        torch.export.save(program, path, extra_files={EXTRA_FILE: json.dumps(description)})


def compile_program(
    path: Path, program: torch.export.ExportedProgram, description: dict[str, Any]
) -> None:
    """Compile a program with AOTInductor for this kind of processor, which takes a minute or more.

    Args:
        path: of the package; its name ends with ``.pt2``.
        program: of `exported_program`.
        description: kept in the package's metadata under "maskattn", as JSON.
    """
    options = {"freezing": True, "aot_inductor.metadata": {"maskattn": json.dumps(description)}}
    with torch.no_grad():
        torch._inductor.aoti_compile_and_package(
            program, package_path=str(path), inductor_configs=options
        )
