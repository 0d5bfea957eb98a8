# SPDX-License-Identifier: BSD-3-Clause
"""A plugin of pytest: tests are collected as where there is a GPU (`-p pretend_gpu`).

Only for `--collect-only`, which shows what a GPU would be given to run.
"""

import pytest
import torch


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config) -> None:
    """Before any module of tests asks for a GPU; not at import, which collects doctests only."""
    if not early_config.known_args_namespace.collectonly:
        raise pytest.UsageError("pretend_gpu: expected --collect-only, got a run of tests")
    torch.cuda.is_available = lambda: True
    torch.cuda.get_device_capability = lambda *device: (9, 0)
