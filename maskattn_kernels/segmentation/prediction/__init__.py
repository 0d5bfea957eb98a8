# SPDX-License-Identifier: BSD-3-Clause
"""Segmenting images: frames in, label files and panels out, and the command ``predict``."""
