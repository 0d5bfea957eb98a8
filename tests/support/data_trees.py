# SPDX-License-Identifier: BSD-3-Clause
"""Small data sets on disk, in the folder layouts in which the real ones are published."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

HEIGHT, WIDTH = 6, 8
SPLITS = ("train", "val")


def save(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)


def photo(path: Path, height: int = HEIGHT, width: int = WIDTH) -> None:
    save(path, np.full((height, width, 3), 77, dtype=np.uint8))


def grid(left: int, right: int, corner: int, dtype: type = np.uint8) -> np.ndarray:
    """Left half, right half, and a corner of 2 x 2 pixels at the right bottom."""
    values = np.full((HEIGHT, WIDTH), left, dtype=dtype)
    values[:, WIDTH // 2 :] = right
    values[-2:, -2:] = corner
    return values


def cityscapes(root: Path) -> None:
    for split in SPLITS:
        stem = "aachen_000000_000019"
        labels = root / "gtFine" / split / "aachen"
        photo(root / "leftImg8bit" / split / "aachen" / f"{stem}_leftImg8bit.png")
        ids = grid(7, 26, 0)  # road, car, unlabeled
        ids[0, -1] = 29  # a caravan: void
        objects = grid(7, 26001, 0, np.uint16)
        objects[0, -1] = 29000
        objects[0, 4] = 26  # of a group of cars
        save(labels / f"{stem}_gtFine_labelIds.png", ids)
        save(labels / f"{stem}_gtFine_instanceIds.png", objects)


def bdd100k(root: Path, kind: str = "ins_seg") -> None:
    for split in SPLITS:
        photo(root / "images" / "10k" / split / "0a-1.jpg")
        save(root / "labels" / "sem_seg" / "masks" / split / "0a-1.png", grid(0, 13, 255))
        category = {"ins_seg": 3, "pan_seg": 35}[kind]  # car
        bits = np.zeros((HEIGHT, WIDTH, 4), dtype=np.uint8)
        bits[:, 4:] = (category, 8, 1, 2)  # truncated, number 258
        bits[0, 4:] = (category, 2, 0, 7)  # a crowd
        bits[-2:, -2:] = 0
        save(root / "labels" / kind / "bitmasks" / split / "0a-1.png", bits)


def ade20k(root: Path, objects: str = "panoptic") -> None:
    for split, folder, stem in (("train", "training", "t_1"), ("val", "validation", "v_1")):
        photo(root / "images" / folder / f"{stem}.jpg")
        save(root / "annotations" / folder / f"{stem}.png", grid(1, 13, 0))  # wall, person
        if objects == "panoptic":
            name = f"ade20k_panoptic_{split}"
            ids = grid(5, 9, 0)
            save(root / name / f"{stem}.png", np.stack([ids, ids, 0 * ids], axis=-1))
            segments = [{"id": 5 * 257, "category_id": 0}, {"id": 9 * 257, "category_id": 12}]
            content = {
                "annotations": [{"file_name": f"{stem}.png", "segments_info": segments}],
                "categories": [{"id": n, "isthing": int(n == 12)} for n in range(150)],
            }
            (root / f"{name}.json").write_text(json.dumps(content))
        elif objects == "instances":
            pixels = np.stack([grid(0, 1, 0), grid(0, 6, 0), grid(0, 0, 0)], axis=-1)
            save(root / "annotations_instance" / folder / f"{stem}.png", pixels)


COCO_CATEGORIES = [
    {"id": 3, "name": "car", "isthing": 1},
    {"id": 1, "name": "person", "isthing": 1},
    {"id": 187, "name": "sky-other-merged", "isthing": 0},
]


def coco(root: Path) -> None:
    (root / "annotations").mkdir(parents=True)
    for split in SPLITS:
        part = f"{split}2017"
        photo(root / part / "000000000139.jpg")
        ids = grid(70000, 300, 0, np.int32)
        ids[0, 4:] = 9
        colors = np.stack([ids & 255, ids >> 8 & 255, ids >> 16], axis=-1).astype(np.uint8)
        save(root / "annotations" / f"panoptic_{part}" / "000000000139.png", colors)
        images = [{"id": 139, "file_name": "000000000139.jpg", "height": HEIGHT, "width": WIDTH}]
        segments = [
            {"id": 70000, "category_id": 187, "iscrowd": 0},
            {"id": 300, "category_id": 3, "iscrowd": 0},
            {"id": 9, "category_id": 1, "iscrowd": 1},
        ]
        row = {"image_id": 139, "file_name": "000000000139.png", "segments_info": segments}
        content = {"images": images, "annotations": [row], "categories": COCO_CATEGORIES}
        (root / "annotations" / f"panoptic_{part}.json").write_text(json.dumps(content))
        write_instances(root / "annotations" / f"instances_{part}.json", images)


def write_instances(path: Path, images: list[dict]) -> None:
    """In each image a large car, a small person on it, and a crowd of cars beside."""
    shapes = [
        (1, 3, [[0, 0, 4, 0, 4, 6, 0, 6]], 0),
        (2, 1, [[0, 0, 2, 0, 2, 2, 0, 2]], 0),
        # Down the columns: 6 * 6 pixels without, 12 with.
        (3, 3, {"size": [HEIGHT, WIDTH], "counts": [36, 12]}, 1),
    ]
    rows = [
        {
            "id": 10 * place + number,
            "image_id": image["id"],
            "category_id": category,
            "segmentation": shape,
            "iscrowd": crowd,
        }
        for place, image in enumerate(images)
        for number, category, shape, crowd in shapes
    ]
    content = {"images": images, "annotations": rows, "categories": COCO_CATEGORIES[:2]}
    path.write_text(json.dumps(content))


def coco_json(root: Path, count: int = 5) -> None:
    images = [{"id": n, "file_name": f"{n}.png"} for n in range(count)]
    for image in images:
        photo(root / "images" / image["file_name"])
    write_instances(root / "annotations.json", images)


CLASSES_YAML = """
classes:
  - {id: 0, name: road}
  - {id: 7, name: car, thing: true, color: [0, 0, 142]}
void: [255]
"""


def folder(root: Path, count: int = 5, apart: bool = False) -> None:
    for split in SPLITS if apart else (".",):
        place = root / split
        for number in range(count):
            photo(place / "images" / f"{number}.jpg")
            save(place / "masks" / f"{number}.png", grid(0, 7, 255))
            save(place / "instances" / f"{number}.png", grid(0, 700, 0, np.uint16))
    (root / "classes.yaml").write_text(CLASSES_YAML)
