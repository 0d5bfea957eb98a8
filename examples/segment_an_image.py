# SPDX-License-Identifier: BSD-3-Clause
"""Segment an image of any size with a trained network, and save a picture of the result.

    python examples/segment_an_image.py [IMAGE [CHECKPOINT]]

CHECKPOINT is a folder, as `maskattn train` leaves in OUT/best, or the name of one on the Hugging
Face hub. Without arguments it takes what train_on_a_folder.py has made: run that first.
"""

import sys
from pathlib import Path

from PIL import Image

from maskattn_kernels.segmentation import Checkpoint

image = sys.argv[1] if len(sys.argv) > 1 else "out/discs/images/000.png"
source = sys.argv[2] if len(sys.argv) > 2 else "out/example/best"
if not Path(image).is_file():
    sys.exit(f"{image}: no such file; give an image, or run train_on_a_folder.py first")

checkpoint = Checkpoint.from_pretrained(source)  # two files that cannot hold code
found = checkpoint.segment(image)  # also a PIL image, an array, a tensor, or a list of them

# `semantic` has the class of each pixel, `instance` the number of its object, at the image's size.
height, width = found.semantic.shape
print(f"{width} x {height} pixels")
for number, name in enumerate(checkpoint.classes.names):
    print(f"{name:12} {(found.semantic == number).mean():6.1%} of the pixels")
for thing in found.objects:
    print(f"object {thing.number}: {thing.name}, {thing.score:.0%} sure, {thing.area} pixels")

mask = found.instance == 1  # the pixels of the first object, as a bool array
Image.fromarray(mask).save("out/first-object.png")
found.overlay().save("out/overlay.png")
print("written: out/overlay.png, out/first-object.png")
