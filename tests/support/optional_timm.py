# SPDX-License-Identifier: BSD-3-Clause
"""timm for tests, where it can be imported."""

import importlib
import importlib.util
import sys
from typing import Any

import pytest
import torch

_KEPT: list[torch.library.Library] = []  # operators go with the library that defines them


def mend_torchvision() -> None:
    """Make a torchvision importable that was built for another torch, such as one with CUDA.

    It does not find its operators then, and its import fails, and with it that of timm,
    torchmetrics and Lightning. They need none of the operators: to declare them is enough.
    """
    if importlib.util.find_spec("torchvision") is None:
        return
    try:
        importlib.import_module("torchvision")
    except RuntimeError:
        for name in [n for n in sys.modules if n.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _KEPT.append(library)


def import_timm() -> Any:
    """timm, or a skip of the test."""
    return pytest.importorskip("timm", reason="needs the packages timm and torchvision")
