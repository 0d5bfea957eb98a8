# SPDX-License-Identifier: BSD-3-Clause
"""The 19 street classes of Cityscapes and BDD100K ("trainIds"), and their ids in files.

Sources: cityscapesscripts/helpers/labels.py, and bdd100k/label/label.py.
"""

from dataclasses import replace

from maskattn_kernels.segmentation.data.sample import VOID, Classes

__all__ = ["BDD_NUMBERS", "BDD_OBJECT_NUMBERS", "CITYSCAPES", "STREET"]

# name, colour, id in Cityscapes, id in BDD100K's panoptic bitmasks; the place is the trainId.
_ROWS = (
    ("road", (128, 64, 128), 7, 7),
    ("sidewalk", (244, 35, 232), 8, 8),
    ("building", (70, 70, 70), 11, 10),
    ("wall", (102, 102, 156), 12, 15),
    ("fence", (190, 153, 153), 13, 11),
    ("pole", (153, 153, 153), 17, 20),
    ("traffic light", (250, 170, 30), 19, 25),
    ("traffic sign", (220, 220, 0), 20, 26),
    ("vegetation", (107, 142, 35), 21, 29),
    ("terrain", (152, 251, 152), 22, 28),
    ("sky", (70, 130, 180), 23, 30),
    ("person", (220, 20, 60), 24, 31),
    ("rider", (255, 0, 0), 25, 32),
    ("car", (0, 0, 142), 26, 35),
    ("truck", (0, 0, 70), 27, 40),
    ("bus", (0, 60, 100), 28, 34),
    ("train", (0, 80, 100), 31, 39),
    ("motorcycle", (0, 0, 230), 32, 37),
    ("bicycle", (119, 11, 32), 33, 33),
)
_FIRST_THING = 11

STREET = Classes(
    names=tuple(row[0] for row in _ROWS),
    is_thing=tuple(number >= _FIRST_THING for number in range(len(_ROWS))),
    colors=tuple(row[1] for row in _ROWS),
    ids=tuple(range(len(_ROWS))),
)

_LABEL_IDS = tuple(row[2] for row in _ROWS)
CITYSCAPES = replace(
    STREET,
    ids=_LABEL_IDS,
    void_ids=tuple(label for label in (*range(34), 255) if label not in _LABEL_IDS),
)
"""The same classes under Cityscapes' labelIds; 255 is -1 (license plate) in a byte."""

BDD_NUMBERS = dict.fromkeys(range(41), VOID) | {row[3]: number for number, row in enumerate(_ROWS)}
"""trainId of each category of the panoptic bitmasks."""

BDD_OBJECT_NUMBERS = {0: VOID} | {
    category: STREET.names.index(name)
    for category, name in enumerate(
        ("person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle"), start=1
    )
}
"""trainId of each category of the instance bitmasks."""
