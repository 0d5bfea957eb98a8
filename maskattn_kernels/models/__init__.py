# SPDX-License-Identifier: BSD-3-Clause
"""Networks built on the attention modules of `maskattn_kernels.nn`."""

from maskattn_kernels.models.blocks import ConvBlock, Down, Up
from maskattn_kernels.models.inference import fast_bfloat16, prepare_for_inference
from maskattn_kernels.models.maskattn_unet import PRESETS, MaskAttnUNet

__all__ = [
    "PRESETS",
    "ConvBlock",
    "Down",
    "MaskAttnUNet",
    "Up",
    "fast_bfloat16",
    "prepare_for_inference",
]
