# SPDX-License-Identifier: BSD-3-Clause
"""Segmentation with MaskAttnUNet: data, training, evaluation, prediction.

Needs the extra: ``pip install 'maskattn_kernels[segmentation]'``.
"""
