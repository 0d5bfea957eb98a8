# SPDX-License-Identifier: BSD-3-Clause
"""Data sets of labelled images, in their published folder layouts."""
