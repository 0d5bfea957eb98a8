# SPDX-License-Identifier: BSD-3-Clause
"""`make_encoder`: encoders by name, as configs and checkpoints give them; without trained weights.

Names may come from a checkpoint of somebody else: nothing is downloaded for them, and no code but
this package's and timm's runs.
"""

import re
from typing import Any

from torch import nn

from maskattn_kernels.common.extras import missing_package
from maskattn_kernels.common.text import one_line, quoted
from maskattn_kernels.models import ENCODERS, as_encoder

__all__ = ["TIMM", "make_encoder"]

TIMM = "timm/"
"""What the names of timm's backbones begin with."""


def make_encoder(name: str, own: str = "unet") -> nn.Module | None:
    """The encoder of a name, with random weights; None for that of the network itself.

    Args:
        name: of ``own``, a name in `ENCODERS`, or "timm/NAME" for a backbone of timm.
        own: what the encoder of the network itself is called.

    Raises:
        ValueError: there is no encoder of that name, or it gives no pyramid of maps.
        ModuleNotFoundError: timm is not installed; one line says how to install it.

    Example:
        >>> from maskattn_kernels.segmentation.model.named_encoders import make_encoder
        >>> make_encoder("efficientnet_lite0").strides
        (2, 4, 8, 16, 32)
    """
    if name == own:
        return None
    if isinstance(name, str) and name.startswith(TIMM):
        return as_encoder(timm_backbone(name))
    if name not in ENCODERS:
        names = quoted((own, *ENCODERS, f"{TIMM}NAME"))
        raise ValueError(f"encoder: expected one of {names}, got {name!r}")
    return ENCODERS[name]()


def timm_backbone(name: str, **options: Any) -> nn.Module:
    """A backbone of timm that gives a list of maps.

    Args:
        name: "timm/NAME", NAME as timm lists it. Not one of a hub or a folder, which timm would
            follow: "timm/hf-hub:owner/name" is refused.
        options: of ``timm.create_model``.

    Raises:
        ValueError, ModuleNotFoundError: as `make_encoder`.
    """
    own_name = name.removeprefix(TIMM)
    if not re.fullmatch(r"\w+(\.\w+)?", own_name):
        raise ValueError(f'encoder: expected "{TIMM}NAME" with a name of timm, got {name!r}')
    try:
        import timm  # by those who ask for it only
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(missing_package(error, "timm"), name=error.name) from None
    except RuntimeError as error:  # of a torchvision for another torch
        raise ValueError(f"encoder: timm cannot be imported ({one_line(error)[:200]})") from None
    try:
        return timm.create_model(
            own_name, **{"pretrained": False, "features_only": True, **options}
        )
    except (RuntimeError, AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"encoder: timm cannot make {name!r} ({one_line(error)[:200]})") from None
