# SPDX-License-Identifier: BSD-3-Clause
"""Two processes train to the weights of one process with the same global batch."""

import os
import subprocess
import sys

import pytest
import torch
from repository import ROOT
from safetensors.torch import load_file
from segmentation_runs import FRM, tiny_arguments

from maskattn_kernels.segmentation.training import command as training

RECIPE = (
    *("--loss.class_weights", "balanced", "--loss.dice_weight", "0.5", "--loss.hard", "0.9"),
    *("--loss.coarse_weight", "0.4", "--data.balance", "true", "--data.augment.hue", "0.1"),
)


@pytest.mark.parametrize("recipe", [(), RECIPE, FRM], ids=["plain", "recipe", "frm"])
def test_two_processes_train_to_the_weights_of_one(recipe, tmp_path):
    # Noise would be drawn by each process for its own images: a selector without any.
    more = (*recipe, "--network.selector", "topk", "--trainer.accelerator", "cpu")
    # AdamW turns the rounding of gradients that should be 0 into steps as large as any. So float64,
    # and no embedding, whose bias has no gradient but what its float32 loss rounds.
    more = (*more, "--trainer.precision", "64-true", "--network.embedding", "0")
    more = (*more, "--loss.pixel_weight", "0.1")
    one, two = tmp_path / "one", tmp_path / "two"
    training.main(tiny_arguments(one, *more, "--data.batch_size", "8"))
    parallel = ("--data.batch_size", "4", "--trainer.devices", "2", "--trainer.strategy", "ddp")
    command = [sys.executable, "-m", "maskattn_kernels.cli", "train"]
    done = subprocess.run(
        [*command, *tiny_arguments(two, *more, *parallel)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    expected = load_file(one / "final" / "model.safetensors")
    got = load_file(two / "final" / "model.safetensors")
    step = torch.finfo(torch.float32).eps  # of the files, where float64 may round to either side
    for name, tensor in expected.items():
        torch.testing.assert_close(got[name], tensor, rtol=step, atol=1e-9, msg=name)
