# SPDX-License-Identifier: BSD-3-Clause
"""The files that ``maskattn predict`` leaves, written in a thread."""

import json
from collections import deque
from collections.abc import Collection
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path, PurePosixPath
from types import TracebackType

import numpy as np
from PIL import Image

from maskattn_kernels.common.atomic import WriteError, replace_file
from maskattn_kernels.segmentation.data.errors import DataError
from maskattn_kernels.segmentation.data.fonts import without_font
from maskattn_kernels.segmentation.data.images import read_labels
from maskattn_kernels.segmentation.data.label_maps import map_ids
from maskattn_kernels.segmentation.data.sample import VOID, Classes, Sample
from maskattn_kernels.segmentation.prediction.coco_files import (
    InstanceWriter,
    PanopticWriter,
    save_png,
)
from maskattn_kernels.segmentation.prediction.output_folder import OutputFolder
from maskattn_kernels.segmentation.prediction.panels import draw_panel, heat_colors
from maskattn_kernels.segmentation.results import Segmentation

__all__ = ["Writer"]

WAITING = 32  # results that may wait for the thread: more would only fill the memory


class Writer:
    """Writes segmentations into a folder; a context, whose end waits for the last file.

    Args:
        out: gets the files that `predict` lists. Labels are the ids of the classes, as in the masks
            of the data set: PNGs of 8 bits, or of 16 where an id is above 255. If one is above
            65535, labels are class numbers.
        classes: of the segmentations.
        objects: whether the network tells objects apart; without, there are no files of objects.
        panels: places of the images that get a panel.
        truth: folder of label PNGs, named as the images, with the classes' ids as pixels.

    Attributes:
        count: images so far.
        failed: a line for each file of ``truth`` that cannot be used; its panel shows no errors.
        notes: lines on what is in the folder beside the new files; complete at the end.

    Raises:
        DataError: there is no such folder ``truth``, or ``out`` holds files of a data set.
        WriteError: the folder cannot be written to.
    """

    def __init__(
        self,
        out: Path,
        classes: Classes,
        *,
        objects: bool = True,
        panels: Collection[int] = (),
        truth: str | Path | None = None,
    ) -> None:
        truth = None if truth is None else Path(truth)
        if truth is not None and not truth.is_dir():
            raise DataError(f"truth: no such folder: {truth}")
        if panels:
            heat_colors()  # if matplotlib is missing, it is better to know before all the work
        self.classes, self.panels, self.truth = classes, panels, truth
        self.values = _label_values(classes)
        self.palette = np.zeros((256, 3), dtype=np.uint8)
        if self.values.dtype == np.uint8:
            self.palette[self.values[: len(classes)]] = classes.colors
        self.count = 0
        self.failed: list[str] = []
        self.notes: list[str] = []
        self.waiting: deque[Future] = deque()
        self.out = OutputFolder(out, _of_labels(classes, self.values))
        try:
            self.panoptic = PanopticWriter(self.out.place("panoptic.json"), classes)
            self.objects = (
                InstanceWriter(self.out.place("annotations.json"), classes) if objects else None
            )
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
        with ExitStack() as steps:
            if error is not None:
                steps.enter_context(suppress(WriteError))  # the first error is the one to tell
            steps.callback(self._note)
            if self.objects is not None:
                steps.callback(self.objects.close)
            steps.callback(self.panoptic.close)
            while self.waiting:
                self.waiting.popleft().result()

    def _note(self) -> None:
        self.notes += self.out.notes()
        self.notes += without_font(self.classes) if self.panels else ()

    def write_text(self, name: str, text: str) -> None:
        """Write ``text`` into the small file ``name`` at once."""
        replace_file(self.out.place(name), lambda path: path.write_text(text, encoding="utf-8"))

    def _write(self, found: Segmentation) -> None:
        try:
            self._write_files(found)
        except OSError as error:
            name = error.filename or self.out.folder
            raise WriteError(f"cannot write {name}: {error.strerror or error}") from None

    def _write_files(self, found: Segmentation) -> None:
        name, number = found.name, found.place + 1
        labels = Image.fromarray(self.values[found.semantic])
        if labels.mode == "L":
            labels.putpalette(self.palette.tobytes())
        save_png(labels, self.out.place(f"labels/{name}.png"))
        file_name = _file_name(found.sample)
        self.out.place(f"panoptic/{name}.png")
        scores = found.scores.tolist()
        self.panoptic.add(number, name, file_name, found.semantic, found.instance, scores)
        if self.objects is not None:
            instances = Image.fromarray(found.instance.astype(np.uint16))
            save_png(instances, self.out.place(f"instances/{name}.png"))
            self.objects.add(number, file_name, found)
        if found.sample.file is not None:
            self.out.link_image(found.sample.file, file_name)
        if found.place in self.panels:
            try:
                truth = self._truth(name, found.semantic.shape)
            except DataError as error:
                self.failed.append(str(error))
                truth = None
            save_png(draw_panel(found, truth), self.out.place(f"panels/{name}.png"))

    def _truth(self, name: str, shape: tuple[int, ...]) -> np.ndarray | None:
        if self.truth is None:
            return None
        path = self.truth / f"{name}.png"
        advice = "expected the ids of the checkpoint's classes, as in the masks it was trained on"
        labels = map_ids(read_labels(path), self.classes.number_of, path, advice)
        if labels.shape != shape:
            raise DataError(f"{path}: expected {shape[0]} x {shape[1]} labels, got {labels.shape}")
        return labels


def _file_name(sample: Sample) -> str:
    """The image's file as the JSON names it, with the folders that are in its name."""
    if sample.file is None:
        return f"{sample.name}.png"
    return PurePosixPath(sample.name).with_name(sample.file.name).as_posix()


def _label_values(classes: Classes) -> np.ndarray:
    """What a label PNG holds for each class number and `VOID`: (256,), uint8 or uint16."""
    values = classes.to_ids(np.arange(VOID + 1))
    return values if values.dtype.itemsize <= 2 else np.arange(VOID + 1, dtype=np.uint8)


def _of_labels(classes: Classes, values: np.ndarray) -> str:
    """The ``classes.yaml`` that makes label PNGs of these ``values`` readable as masks."""
    colors = classes.colors
    distinct = len({*colors, (0, 0, 0)}) == len(colors) + 1  # else a reader cannot tell them apart
    lines = ["classes:"]
    for number, name in enumerate(classes.names):
        entry = {"id": int(values[number]), "name": name, "thing": classes.is_thing[number]}
        if distinct:
            entry["color"] = list(colors[number])
        lines.append(f"  - {json.dumps(entry, ensure_ascii=False)}")
    return "\n".join([*lines, f"void: [{int(values[VOID])}]", ""])
