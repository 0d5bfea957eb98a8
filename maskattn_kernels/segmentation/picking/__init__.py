# SPDX-License-Identifier: BSD-3-Clause
"""Which images to label next: ``maskattn pick``."""
