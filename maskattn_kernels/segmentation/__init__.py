# SPDX-License-Identifier: BSD-3-Clause
"""Semantic, instance and panoptic segmentation with MaskAttnUNet: data, training, evaluation, prediction.

Needs the extra: ``pip install 'maskattn_kernels[segmentation]'``.
"""
