# SPDX-License-Identifier: BSD-3-Clause
"""`make_encoder`: encoders by name, as configs and checkpoints give them; without weights."""

from collections.abc import Callable

from torch import nn

from maskattn_kernels.common.text import quoted
from maskattn_kernels.models import EfficientNetLite0

__all__ = ["ENCODERS", "OWN_ENCODER", "make_encoder"]

OWN_ENCODER = "unet"
"""The encoder of the U-Net itself."""

ENCODERS: dict[str, Callable[[], nn.Module]] = {"efficientnet_lite0": EfficientNetLite0}
"""Other encoders of this package: what makes them, by name."""


def make_encoder(name: str) -> nn.Module | None:
    """The encoder of a name, with random weights; None for that of the U-Net itself.

    Args:
        name: "unet", or a name in `ENCODERS`.

    Raises:
        ValueError: there is no encoder of that name.

    Example:
        >>> from maskattn_kernels.segmentation.model.named_encoders import make_encoder
        >>> make_encoder("efficientnet_lite0").strides
        (2, 4, 8, 16, 32)
    """
    if name == OWN_ENCODER:
        return None
    if name not in ENCODERS:
        raise ValueError(
            f"encoder: expected one of {quoted((OWN_ENCODER, *ENCODERS))}, got {name!r}"
        )
    return ENCODERS[name]()
