# SPDX-License-Identifier: BSD-3-Clause
"""timm for tests, where it can be imported."""

from typing import Any

import pytest


def import_timm() -> Any:
    """timm, or a skip of the test."""
    return pytest.importorskip("timm", reason="needs the packages timm and torchvision")
