# SPDX-License-Identifier: BSD-3-Clause
"""Predictions in COCO's formats: panoptic (PNGs and a JSON), and instances (a JSON)."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from maskattn_kernels.common.atomic import replace_file
from maskattn_kernels.common.json_lists import JsonLists
from maskattn_kernels.segmentation.data.coco_format import categories, rgb_from_ids, segments_of
from maskattn_kernels.segmentation.data.run_lengths import outlines
from maskattn_kernels.segmentation.data.sample import Classes
from maskattn_kernels.segmentation.results import Segmentation

__all__ = ["InstanceWriter", "PanopticWriter", "save_png"]

INFO = {"description": "predictions of maskattn_kernels"}


def save_png(picture: Image.Image, path: Path) -> None:
    """Save a ``picture`` at ``path``, whole or not at all.

    Raises:
        WriteError: it could not be written.
    """
    # Label maps shrink well at the fastest level too.
    replace_file(path, partial(picture.save, format="PNG", compress_level=1), durable=False)


class PanopticWriter:
    """Writes label maps as COCO panoptic: a PNG for each image, and one JSON.

    Args:
        path: of the JSON; the PNGs go into the folder of the same name without ending.
        classes: of the label maps.

    Example:
        >>> import tempfile
        >>> classes = Classes(("sky", "car"), (False, True), ((0, 0, 9), (9, 0, 0)), (1, 7))
        >>> semantic = np.array([[0, 1], [0, 1]], dtype=np.uint8)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     writer = PanopticWriter(Path(folder) / "panoptic.json", classes)
        ...     writer.add(1, "a", "a.jpg", semantic, semantic.astype(np.int32))
        ...     writer.close()
        ...     sorted(p.name for p in Path(folder).rglob("*"))
        ['a.png', 'panoptic', 'panoptic.json']
    """

    def __init__(self, path: Path, classes: Classes) -> None:
        self.folder = path.with_suffix("")
        self.folder.mkdir(parents=True, exist_ok=True)
        self.classes = classes
        self._lists = JsonLists(path, "images", "annotations")

    def add(
        self,
        image_id: int,
        name: str,
        file_name: str,
        semantic: np.ndarray,
        instance: np.ndarray,
        scores: Sequence[float] | None = None,
    ) -> None:
        """Write the PNG of one image.

        Args:
            image_id: its number in the JSON.
            name: of its PNG, without ending.
            file_name: of the image itself.
            semantic: (H,W), class numbers or `VOID`.
            instance: (H,W), 0 = no object.
            scores: of the objects 1, 2, ...; kept as ``score`` of their segments.
        """
        ids, segments = segments_of(semantic, instance, self.classes, scores)
        save_png(Image.fromarray(rgb_from_ids(ids)), self.folder / f"{name}.png")
        height, width = semantic.shape
        image = {"id": image_id, "file_name": file_name, "height": height, "width": width}
        self._lists.add("images", image)
        annotation = {"image_id": image_id, "file_name": f"{name}.png", "segments_info": segments}
        self._lists.add("annotations", annotation)

    def close(self) -> None:
        """Write the JSON."""
        self._lists.close(info=INFO, licenses=[], categories=categories(self.classes))


class InstanceWriter:
    """Writes objects as a COCO JSON of instances, with packed run lengths as their masks.

    Args:
        path: of the JSON.
        classes: of the objects; the JSON lists those whose objects are counted.
    """

    def __init__(self, path: Path, classes: Classes) -> None:
        self.classes = classes
        self._lists = JsonLists(path, "images", "annotations")
        self._count = 0

    def add(self, image_id: int, file_name: str, found: Segmentation) -> None:
        """Add the objects of one image.

        Args:
            image_id: its number in the JSON.
            file_name: of the image itself.
            found: in the image.
        """
        height, width = found.instance.shape
        image = {"id": image_id, "file_name": file_name, "height": height, "width": width}
        self._lists.add("images", image)
        for outline in outlines(found.instance):
            self._count += 1
            row = {
                "id": self._count,
                "image_id": image_id,
                "category_id": self.classes.ids[found.labels[outline.number - 1]],
                "segmentation": outline.segmentation,
                "area": outline.area,
                "bbox": outline.bbox,
                "iscrowd": 0,
                "score": float(found.scores[outline.number - 1]),
            }
            self._lists.add("annotations", row)

    def close(self) -> None:
        """Write the JSON."""
        things = [row for row in categories(self.classes) if row["isthing"]]
        self._lists.close(info=INFO, licenses=[], categories=things)
