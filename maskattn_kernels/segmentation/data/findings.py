# SPDX-License-Identifier: BSD-3-Clause
"""What the splits of a data set hold: counted, judged and told before anything is trained."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path

import numpy as np

from maskattn_kernels.common.background import map_ahead
from maskattn_kernels.segmentation.data.errors import DataError
from maskattn_kernels.segmentation.data.images import is_turned
from maskattn_kernels.segmentation.data.judge import differing, judge
from maskattn_kernels.segmentation.data.sample import VOID, Sample, SegmentationDataset

__all__ = ["Findings", "Survey", "shared_images", "survey"]

_THREADS = 4
_HEAD = 4096  # bytes that tell most files of one size apart


@dataclass
class Findings:
    """What a split holds.

    Attributes:
        total: images of the split.
        pixels: (256,) by class number; the last is void.
        images: by class number, images that show it.
        sizes: images by (width, height).
        objects: of each image that was read.
        faults: one line for each image that cannot be used.
        read: images that were read, of `total`.
        turned: files of images that EXIF turns.
        lone: names of images that show void and a single class, by the number of that class.
    """

    total: int
    pixels: np.ndarray = field(default_factory=lambda: np.zeros(VOID + 1, dtype=np.int64))
    images: np.ndarray = field(default_factory=lambda: np.zeros(VOID + 1, dtype=np.int64))
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    objects: list[int] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    read: int = 0
    turned: list[Path] = field(default_factory=list)
    lone: dict[int, list[str]] = field(default_factory=dict)

    def add(self, sample: Sample) -> None:
        """Count one image, ``sample``."""
        if sample.semantic is None:
            self.faults.append(f"{sample.name}: no labels")
            return
        counts = np.bincount(sample.semantic.ravel(), minlength=VOID + 1)
        self.pixels += counts
        self.images += counts > 0
        seen = np.flatnonzero(counts)
        if len(seen) == 2 and seen[1] == VOID:
            self.lone.setdefault(int(seen[0]), []).append(sample.name)
        height, width = sample.semantic.shape
        self.sizes[width, height] += 1
        if sample.instance is not None:
            self.objects.append(len(np.setdiff1d(sample.instance, [0])))
        self.read += 1


@dataclass(frozen=True)
class Survey:
    """What was found in the splits of a data set.

    Attributes:
        splits: by name.
        faults: why the data cannot be used, one line each.
        notes: what a user should know, one line each.
    """

    splits: Mapping[str, Findings]
    faults: Sequence[str]
    notes: Sequence[str]


def survey(
    sets: Mapping[str, SegmentationDataset],
    most: int,
    used: Mapping[str, Sequence[int] | np.ndarray] | None = None,
    progress: Callable[[str], None] = lambda text: None,
) -> Survey:
    """Read images of each split, evenly spread, and judge their labels.

    Where the images read give a fault of the labels as a whole (one class only), more are read
    until it is gone or all have been read: a rare class is no fault.

    Args:
        sets: the splits, "train" and "val" or one of them.
        most: images of each split to begin with; 0 = all.
        used: numbers of the images of a split that are in use; else all of them.
        progress: is called with how far it is, after each image.
    """
    numbers = {split: (used or {}).get(split, range(len(sets[split]))) for split in sets}
    found = {split: Findings(len(numbers[split])) for split in sets}
    waiting = {split: _spread(numbers[split], most) for split in sets}
    step = most or max(map(len, waiting.values()))
    classes = [samples.classes for samples in sets.values()]
    differ = differing(*classes) if len(classes) == 2 else []
    while True:
        for split, samples in sets.items():
            part, waiting[split] = waiting[split][:step], waiting[split][step:]
            before = found[split].read
            for done in _read(found[split], samples, part):
                progress(f"{split}: {before + done} of {before + len(part)} images read")
        broken = differ + [fault for findings in found.values() for fault in findings.faults]
        faults, notes = ([], []) if broken else judge(found, classes[0])
        if not faults or not any(waiting.values()):
            break
        step *= 2
    told = [note for samples in sets.values() for note in getattr(samples, "notes", ())]
    files = [getattr(samples, "files", {}) for samples in sets.values()]
    shared = shared_images(*files) if len(files) == 2 else []
    notes = list(dict.fromkeys(told + shared + _turned(found.values()) + notes))
    return Survey(found, list(dict.fromkeys(broken + faults)), notes)


def _turned(splits: Iterable[Findings]) -> list[str]:
    """A note on images that EXIF turns: where the size stays, wrong labels give no error."""
    files = [file for findings in splits for file in findings.turned]
    if not files:
        return []
    return [
        f"{len(files)} of the images read are turned by their EXIF orientation, such as "
        f"{files[0]}: their labels must lie as viewers show them"
    ]


def shared_images(train: Mapping[str, Path], val: Mapping[str, Path]) -> list[str]:
    """Lines on images that are in both splits.

    Args:
        train: image files of the one, by name.
        val: of the other.

    Example:
        >>> shared_images({"a": Path("train/a.png")}, {"b": Path("val/b.png")})
        []
    """
    lines = []
    names = [name for name in val if name in train]
    if names:
        lines.append(f"{len(names)} names are in train and in val, such as {names[0]!r}")
    twins = _same_bytes(train, val)
    if twins:
        first, second = twins[0]
        lines.append(
            f"{len(twins)} images of val are in train too, such as {first} and {second}: scores of "
            f"val are too good by them; remove them from one of the two"
        )
    return lines


def _same_bytes(train: Mapping[str, Path], val: Mapping[str, Path]) -> list[tuple[Path, Path]]:
    """Pairs of files with the same content; only those that agree in size and head are read."""

    def grouped(files: Iterable[Path]) -> dict[int, list[Path]]:
        groups: dict[int, list[Path]] = {}
        for path in files:
            if path.is_file():
                groups.setdefault(path.stat().st_size, []).append(path)
        return groups

    first, second = grouped(train.values()), grouped(val.values())
    pairs = []
    for size in first.keys() & second.keys():
        heads = {_digest(path, _HEAD) for path in first[size]}
        likely = [path for path in second[size] if _digest(path, _HEAD) in heads]
        if likely:
            whole = {_digest(path): path for path in first[size]}
            pairs += [(whole[d], path) for path in likely if (d := _digest(path)) in whole]
    return pairs


def _digest(path: Path, most: int = -1) -> bytes:
    with path.open("rb") as file:
        return blake2b(file.read(most)).digest()


def _spread(numbers: Sequence[int] | np.ndarray, most: int) -> list[int]:
    """All numbers, those first that are evenly spread."""
    total = len(numbers)
    count = total if most == 0 else min(most, total)
    first = [step * total // count for step in range(count)]
    chosen = set(first)
    rest = [place for place in range(total) if place not in chosen]
    return [int(numbers[place]) for place in (*first, *rest)]


def _read(found: Findings, samples: SegmentationDataset, numbers: Sequence[int]) -> Iterator[int]:
    """Add the images of these numbers to ``found``; gives how many are done."""

    def read(number: int) -> Sample | str:
        try:
            return samples[number]
        except DataError as error:
            return str(error)

    files = getattr(samples, "files", {})
    for done, sample in enumerate(map_ahead(read, numbers, _THREADS), start=1):
        yield done
        if isinstance(sample, str):
            found.faults.append(sample)
            continue
        found.add(sample)
        if sample.name in files and is_turned(files[sample.name]):
            found.turned.append(files[sample.name])
