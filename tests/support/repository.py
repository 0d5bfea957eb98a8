# SPDX-License-Identifier: BSD-3-Clause
"""Where the repository and the helpers of its tests are."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SUPPORT = Path(__file__).resolve().parent
