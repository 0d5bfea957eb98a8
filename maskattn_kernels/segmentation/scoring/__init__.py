# SPDX-License-Identifier: BSD-3-Clause
"""Scores of a network on labelled images: mIoU, PQ, AP, and the command ``eval``."""
