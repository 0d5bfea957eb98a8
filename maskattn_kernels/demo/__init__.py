# SPDX-License-Identifier: BSD-3-Clause
"""``maskattn demo``: the U-Net on photographs, dense and with masked attention, as a page."""
