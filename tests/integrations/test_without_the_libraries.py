# SPDX-License-Identifier: BSD-3-Clause
"""Where a library is not installed, one line says what to install."""

import sys

import pytest

from maskattn_kernels.integrations.transformers import register


def test_transformers(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    line = r"^transformers is not installed; pip install 'maskattn_kernels\[transformers\]'$"
    with pytest.raises(ModuleNotFoundError, match=line):
        register()
