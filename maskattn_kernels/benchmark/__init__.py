# SPDX-License-Identifier: BSD-3-Clause
"""Measurements behind ``maskattn bench``: cases, peers, timing, memory, reports and plots."""
