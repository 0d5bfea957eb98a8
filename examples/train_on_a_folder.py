# SPDX-License-Identifier: BSD-3-Clause
"""Train a network on a folder of images and masks.

    python examples/train_on_a_folder.py [FOLDER]

FOLDER holds images/, masks/ (PNGs, a pixel is the id of its class) and classes.yaml. Without one,
a tiny folder is made first, of red and blue discs on grey, so that you can see what it looks like.
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image

from maskattn_kernels.segmentation import evaluate, open_dataset, train

CLASSES = """\
classes:
  - {id: 0, name: ground}
  - {id: 1, name: red disc, thing: true}    # a thing: its objects are told apart
  - {id: 2, name: blue disc, thing: true}
void: [255]                                 # pixels without a class
"""


def make_folder(root: Path, count: int = 40, side: int = 64) -> Path:
    """Images of two discs, the class of each pixel, and the number of its object."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:side, :side]
    for number in range(count):
        image = rng.integers(90, 160, (side, side, 3)).astype(np.uint8)
        masks, instances = np.zeros((2, side, side), np.uint8)
        for disc, color in ((1, (200, 40, 40)), (2, (40, 40, 200))):
            y, x, radius = *rng.integers(12, side - 12, 2), rng.integers(6, 12)
            inside = (rows - y) ** 2 + (columns - x) ** 2 < radius**2
            image[inside], masks[inside], instances[inside] = color, disc, disc
        for name, pixels in (("images", image), ("masks", masks), ("instances", instances)):
            (root / name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(root / name / f"{number:03}.png")
    (root / "classes.yaml").write_text(CLASSES)
    return root


folder = Path(sys.argv[1]) if len(sys.argv) > 1 else make_folder(Path("out/discs"))

# The options are those of `maskattn train`. A fifth of the images is kept for validation.
checkpoint = train(
    data={"name": "folder", "root": str(folder), "size": 32, "batch_size": 8},
    network={"task": "panoptic", "width": 8},  # small; leave width out for the preset "edge"
    steps=40,
    val_every=40,
    out="out/example",
)
scores = evaluate(checkpoint, open_dataset("folder", folder, "val"))["original size"]["mean"]
print(", ".join(f"{name} {score:.1f}" for name, score in scores.items()))
print("the checkpoint is in out/example/best; segment_an_image.py uses it")
