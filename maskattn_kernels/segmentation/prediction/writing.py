# SPDX-License-Identifier: BSD-3-Clause
"""The files that ``maskattn predict`` leaves, written in a thread."""

from collections import deque
from collections.abc import Collection
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

import numpy as np
from PIL import Image

from maskattn_kernels.common.atomic import WriteError, replace_file
from maskattn_kernels.segmentation.data.coco_format import PanopticWriter
from maskattn_kernels.segmentation.data.errors import DataError
from maskattn_kernels.segmentation.data.images import read_labels
from maskattn_kernels.segmentation.data.label_maps import map_ids
from maskattn_kernels.segmentation.data.sample import VOID, Classes
from maskattn_kernels.segmentation.infer import Segmentation
from maskattn_kernels.segmentation.prediction.panels import draw_panel, heat_colors

__all__ = ["Writer"]

WAITING = 32  # results that may wait for the thread: more would only fill the memory


class Writer:
    """Writes segmentations into a folder; a context, whose end waits for the last file.

    Args:
        out: gets ``labels/``, ``panoptic/``, ``panoptic.json`` and ``panels/``. Labels are the ids
            of the classes, as in the masks of the data set: PNGs of 8 bits, or of 16 where an id is
            above 255. If one is above 65535, labels are class numbers.
        classes: of the segmentations.
        panels: places of the images that get a panel.
        truth: folder of label PNGs, named as the images, with the classes' ids as pixels.

    Attributes:
        count: images so far.
        failed: a line for each file of ``truth`` that cannot be used; its panel shows no errors.

    Raises:
        DataError: there is no such folder ``truth``.
        WriteError: the folder cannot be written to.
    """

    def __init__(
        self,
        out: Path,
        classes: Classes,
        *,
        panels: Collection[int] = (),
        truth: str | Path | None = None,
    ) -> None:
        truth = None if truth is None else Path(truth)
        if truth is not None and not truth.is_dir():
            raise DataError(f"truth: no such folder: {truth}")
        if panels:
            heat_colors()  # if matplotlib is missing, it is better to know before all the work
        self.out, self.classes, self.panels, self.truth = out, classes, panels, truth
        self.values = _label_values(classes)
        self.palette = np.zeros((256, 3), dtype=np.uint8)
        if self.values.dtype == np.uint8:
            self.palette[self.values[: len(classes)]] = classes.colors
        self.count = 0
        self.failed: list[str] = []
        self.waiting: deque[Future] = deque()
        try:
            for folder in ("labels", "panels") if panels else ("labels",):
                (out / folder).mkdir(parents=True, exist_ok=True)
            self.panoptic = PanopticWriter(out / "panoptic.json", classes)
        except OSError as error:
            raise WriteError(f"cannot write {error.filename}: {error.strerror}") from None
        self.thread = ThreadPoolExecutor(1)

    def add(self, found: Segmentation) -> None:
        """Write the files of ``found``, soon; an error of an earlier image is raised here."""
        self.count += 1
        self.waiting.append(self.thread.submit(self._write, found))
        while len(self.waiting) > WAITING or (self.waiting and self.waiting[0].done()):
            self.waiting.popleft().result()

    def __enter__(self) -> "Writer":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # Whatever ends the work: what was computed is written, and the JSON lists it.
        self.thread.shutdown(wait=True)
        try:
            while self.waiting:
                self.waiting.popleft().result()
            self.panoptic.close()
        except WriteError:
            if error is None:
                raise

    def write_text(self, name: str, text: str) -> None:
        """Write ``text`` into the small file ``name`` at once."""
        replace_file(self.out / name, lambda path: path.write_text(text, encoding="utf-8"))

    def _write(self, found: Segmentation) -> None:
        try:
            self._write_files(found)
        except OSError as error:
            name = error.filename or self.out
            raise WriteError(f"cannot write {name}: {error.strerror or error}") from None

    def _write_files(self, found: Segmentation) -> None:
        labels = Image.fromarray(self.values[found.semantic])
        if labels.mode == "L":
            labels.putpalette(self.palette.tobytes())
        # Label maps shrink well at the fastest level too.
        labels.save(self.out / "labels" / f"{found.name}.png", compress_level=1)
        self.panoptic.add(found.name, found.semantic, found.instance, found.scores.tolist())
        if found.place in self.panels:
            try:
                truth = self._truth(found.name, found.semantic.shape)
            except DataError as error:
                self.failed.append(str(error))
                truth = None
            panel = draw_panel(found, truth)
            panel.save(self.out / "panels" / f"{found.name}.png", compress_level=1)

    def _truth(self, name: str, shape: tuple[int, ...]) -> np.ndarray | None:
        if self.truth is None:
            return None
        path = self.truth / f"{name}.png"
        advice = "expected the ids of the checkpoint's classes, as in the masks it was trained on"
        labels = map_ids(read_labels(path), self.classes.number_of, path, advice)
        if labels.shape != shape:
            raise DataError(f"{path}: expected {shape[0]} x {shape[1]} labels, got {labels.shape}")
        return labels


def _label_values(classes: Classes) -> np.ndarray:
    """What a label PNG holds for each class number and `VOID`: (256,), uint8 or uint16."""
    values = classes.to_ids(np.arange(VOID + 1))
    return values if values.dtype.itemsize <= 2 else np.arange(VOID + 1, dtype=np.uint8)
