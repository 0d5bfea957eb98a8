# SPDX-License-Identifier: BSD-3-Clause
"""A program that runs a checkpoint in torch on some images, for its memory to be measured:

    python -m maskattn_kernels.segmentation.reporting.torch_process JSON IMAGES.npz

It prints "ready", and ends when its input does.
"""

import json
import sys

import numpy as np
import torch

from maskattn_kernels.segmentation.checkpoints import Checkpoint
from maskattn_kernels.segmentation.model.prepared import inference_dtype, prepared
from maskattn_kernels.segmentation.reporting.memory import READY

__all__ = ["main"]


def main(words: list[str]) -> None:
    """Run the images.

    Args:
        words: a JSON object with "checkpoint", "keep", "selector", "precision" and "threads"; and a
            file of uint8 arrays (1,3,H,W).
    """
    options = json.loads(words[0])
    torch.set_num_threads(options["threads"])
    checkpoint = Checkpoint.from_pretrained(options["checkpoint"])
    turned = checkpoint.with_masks(options["keep"], options["selector"])
    dtype = inference_dtype(options["precision"], torch.device("cpu"))
    ready = prepared(turned.network.eval(), dtype)
    with torch.inference_mode():
        for image in np.load(words[1]).values():
            ready(torch.from_numpy(image)).semantic.argmax(1)
    print(READY, flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main(sys.argv[1:])
