# SPDX-License-Identifier: BSD-3-Clause
"""Libraries that depend on torch, which `make integrations` installs apart from the environment."""

import importlib
import importlib.util
import sys
from pathlib import Path

import torch

FOLDER = Path(__file__).resolve().parents[1] / "build" / "integrations"

_KEPT: list[torch.library.Library] = []  # operators go with the library that defines them


def import_library(name: str) -> object:
    """A package of the environment or of `FOLDER`.

    Raises:
        ValueError: it is in neither.
    """
    if importlib.util.find_spec(name) is None and FOLDER.is_dir():
        sys.path.append(str(FOLDER))  # last, so that it hides nothing of the environment
    if importlib.util.find_spec(name) is None:
        raise ValueError(f"{name} is not installed; `make integrations` installs it")
    mend_torchvision()
    return importlib.import_module(name)


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
