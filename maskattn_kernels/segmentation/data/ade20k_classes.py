# SPDX-License-Identifier: BSD-3-Clause
"""The 150 classes of ADE20K's scene parsing challenge, in its order.

Sources: objectInfo150.txt of the challenge; things are the 100 classes of its instance track.
"""

from maskattn_kernels.segmentation.data.label_maps import palette
from maskattn_kernels.segmentation.data.sample import Classes

__all__ = ["ADE20K_CLASSES"]

_NAMES = """
    wall building sky floor tree ceiling road bed window grass cabinet sidewalk person earth
    door table mountain plant curtain chair car water painting sofa shelf house sea mirror rug
    field armchair seat fence desk rock wardrobe lamp tub rail cushion base box column
    signboard chest_of_drawers counter sand sink skyscraper fireplace refrigerator grandstand
    path stairs runway case pool_table pillow screen_door stairway river bridge bookcase blind
    coffee_table toilet flower book hill bench countertop stove palm kitchen_island computer
    swivel_chair boat bar arcade_machine hovel bus towel light truck tower chandelier awning
    street_lamp booth tv plane dirt_track clothes pole land bannister escalator ottoman bottle
    buffet poster stage van ship fountain conveyer_belt canopy washer plaything pool stool
    barrel basket falls tent bag minibike cradle oven ball food step tank trade_name microwave
    pot animal bicycle lake dishwasher screen blanket sculpture hood sconce vase traffic_light
    tray trash_can fan pier crt_screen plate monitor bulletin_board shower radiator glass
    clock flag
""".split()

# fmt: off
_STUFF = {
    0, 1, 2, 3, 4, 5, 6, 9, 11, 13, 16, 17, 21, 25, 26, 28, 29, 34, 40, 46, 48, 51, 52, 54,
    59, 60, 61, 63, 68, 77, 79, 84, 91, 94, 96, 99, 100, 101, 105, 106, 109, 113, 114, 117,
    122, 128, 131, 140, 141, 145,
}
# fmt: on

ADE20K_CLASSES = Classes(
    names=tuple(name.replace("_", " ") for name in _NAMES),
    is_thing=tuple(number not in _STUFF for number in range(len(_NAMES))),
    colors=palette(len(_NAMES) + 1)[1:],
    ids=tuple(range(1, len(_NAMES) + 1)),
    void_ids=(0,),
)
