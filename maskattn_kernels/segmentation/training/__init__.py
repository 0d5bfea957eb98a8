# SPDX-License-Identifier: BSD-3-Clause
"""Training: options, the Lightning module, a run's state, and the command ``train``."""
