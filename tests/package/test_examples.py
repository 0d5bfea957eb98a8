# SPDX-License-Identifier: BSD-3-Clause
"""The scripts under examples/ run as a newcomer runs them, and stay short."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from repository import ROOT

FOLDER = ROOT / "examples"
# What is run one after another in one folder, with a part of what each prints.
RUNS = (
    {"swap_into_a_model.py": "swapped 2, skipped 0"},
    {"train_on_a_folder.py": "mIoU", "segment_an_image.py": "written: out/overlay.png"},
)


def test_every_example_is_run_and_short() -> None:
    scripts = sorted(FOLDER.glob("*.py"))
    assert sorted(name for run in RUNS for name in run) == [path.name for path in scripts]
    assert all(len(path.read_text().splitlines()) < 60 for path in scripts)


@pytest.mark.parametrize("run", RUNS, ids=" ".join)
def test_examples_run(run: dict[str, str], tmp_path: Path) -> None:
    for name, printed in run.items():
        done = subprocess.run(
            [sys.executable, str(FOLDER / name)],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        assert printed in done.stdout
