# SPDX-License-Identifier: BSD-3-Clause
"""A plugin of pytest: tests are collected as where there is a GPU (`-p pretend_gpu`).

Only for `--collect-only`, which shows what a GPU would be given to run.
"""

import pytest
import torch

torch.cuda.is_available = lambda: True
torch.cuda.get_device_capability = lambda *device: (9, 0)


def pytest_configure(config: pytest.Config) -> None:
    if not config.option.collectonly:
        raise pytest.UsageError("pretend_gpu: expected --collect-only, got a run of tests")
