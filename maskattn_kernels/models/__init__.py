# SPDX-License-Identifier: BSD-3-Clause
"""Networks built on the attention modules of `maskattn_kernels.nn`."""

from maskattn_kernels.models.attention_network import AttentionNetwork
from maskattn_kernels.models.blocks import ConvBlock, Down, SlimUp, Up
from maskattn_kernels.models.depthwise import DepthwiseConv2d
from maskattn_kernels.models.efficientnet import EfficientNetLite0
from maskattn_kernels.models.encoders import ENCODERS, EncoderLike, as_encoder
from maskattn_kernels.models.frm import FRM_PRESETS, FRMNet
from maskattn_kernels.models.inference import fast_bfloat16, prepare_for_inference
from maskattn_kernels.models.light_encoder import LightEncoder
from maskattn_kernels.models.maskattn_unet import PRESETS, MaskAttnUNet
from maskattn_kernels.models.selector_dial import SelectorDial

__all__ = [
    "ENCODERS",
    "FRM_PRESETS",
    "PRESETS",
    "AttentionNetwork",
    "ConvBlock",
    "DepthwiseConv2d",
    "Down",
    "EfficientNetLite0",
    "EncoderLike",
    "FRMNet",
    "LightEncoder",
    "MaskAttnUNet",
    "SelectorDial",
    "SlimUp",
    "Up",
    "as_encoder",
    "fast_bfloat16",
    "prepare_for_inference",
]
