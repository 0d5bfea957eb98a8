# SPDX-License-Identifier: BSD-3-Clause
"""timm for tests, where it can be imported."""

import importlib.util
from typing import Any

import pytest
import torch

_KEPT: list[torch.library.Library] = []  # operators go with the library that defines them


def import_timm() -> Any:
    """timm, or a skip of the test.

    A torchvision for another build of torch does not define its operators and then fails to import,
    although timm needs none of them: they are declared here first.
    """
    if any(importlib.util.find_spec(name) is None for name in ("timm", "torchvision")):
        pytest.skip("needs the packages timm and torchvision")
    if not _KEPT and not hasattr(torch.ops.torchvision, "nms"):
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _KEPT.append(library)
    return importlib.import_module("timm")
