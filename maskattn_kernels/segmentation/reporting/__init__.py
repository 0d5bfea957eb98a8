# SPDX-License-Identifier: BSD-3-Clause
"""What a checkpoint would be like on a device: scores, times and memory of all ways to run it."""
