# SPDX-License-Identifier: BSD-3-Clause
"""Whether a network can learn from labels: faults and notes by how often each class occurs."""

from collections.abc import Iterable, Mapping
from typing import Protocol

import numpy as np

from maskattn_kernels.segmentation.data.errors import shown
from maskattn_kernels.segmentation.data.sample import VOID, Classes

__all__ = ["Counts", "differing", "judge"]


LONE_SHARE = 0.05
"""Images of one class and void are told from this share of the images on."""


class Counts(Protocol):
    """What is known of a split: see `findings.Findings`."""

    total: int
    read: int
    pixels: np.ndarray
    objects: list[int]
    lone: dict[int, list[str]]


def judge(splits: Mapping[str, Counts], classes: Classes) -> tuple[list[str], list[str]]:
    """Faults, with which nothing can be learned or scored, and notes; one line each.

    Args:
        splits: what was counted in "train", "val" or both.
        classes: of the labels.

    Example:
        >>> from maskattn_kernels.segmentation.data.findings import Findings
        >>> train = Findings(total=5, read=5)
        >>> train.pixels[[0, VOID]] = 90, 10
        >>> classes = Classes(("sky", "car"), (False, False), ((0, 0, 9), (9, 0, 0)), (0, 1))
        >>> judge({"train": train}, classes)[0][0][:47]
        "train: only 'sky' has pixels, all others are vo"
    """
    faults, notes = [], []
    for split, counts in splits.items():
        seen = _seen(counts, classes)
        void = int(counts.pixels[VOID])
        if not counts.read:
            continue
        if not seen.any():
            faults.append(f"{split}: every pixel is void; expected pixels of {_names(classes)}")
        elif seen.sum() == 1 and split == "train":
            faults.append(_one_class(classes.names[int(seen.argmax())], void, classes))
    if not faults:
        notes += [*_lone(splits, classes), *_unseen(splits, classes), *_between(splits, classes)]
        if classes.things and not any(any(counts.objects) for counts in splits.values()):
            things = _names(classes, classes.things)
            notes.append(f"no labels of objects, so those of {things} cannot be told apart")
    return faults, notes


def differing(train: Classes, val: Classes) -> list[str]:
    """A fault, if the classes of ``train`` and ``val`` are not the same in the same order."""
    if train == val:
        return []
    only = [
        f"only in {split}: {', '.join(map(shown, names[:5]))}"
        for split, here, there in (("train", train, val), ("val", val, train))
        if (names := [name for name in here.names if name not in there.names])
    ]
    details = "; ".join(only) or "their ids, kinds, colours or order are not the same"
    return [f"the classes of train and val differ ({details}); expected the same list in both"]


def _one_class(name: str, void: int, classes: Classes) -> str:
    if len(classes) == 1:
        return (
            f"train: {name!r} is the only class, so there is nothing to tell apart; declare what "
            f"surrounds it as a class too" + (", which is void now" if void else "")
        )
    others = _names(classes, [n for n, other in enumerate(classes.names) if other != name])
    if void:
        return (
            f"train: only {name!r} has pixels, all others are void; if the void ones are {others}, "
            f"as in masks of 0 and 255, write their value as the id of that class, and `void: []`"
        )
    return f"train: only {name!r} has pixels; expected pixels of {others} too"


def _lone(splits: Mapping[str, Counts], classes: Classes) -> list[str]:
    """Notes on images of a single class and void: a part of the masks may be of 0 and 255."""
    return [
        f"{split}: {len(names)} images show only {classes.names[number]!r} and void, such as "
        f"{names[0]!r}; if their void is a class, as in masks of 0 and 255, write its id instead"
        for split, counts in splits.items()
        for number, names in counts.lone.items()
        if len(names) >= LONE_SHARE * counts.read
    ]


def _unseen(splits: Mapping[str, Counts], classes: Classes) -> list[str]:
    """A note on the classes that no split has."""
    unseen = ~np.any([_seen(counts, classes) for counts in splits.values()], axis=0)
    if not unseen.any() or not any(counts.read for counts in splits.values()):
        return []
    return [
        f"no pixel of {unseen.sum()} of {len(classes)} classes in {_images(splits)}: "
        f"{_names(classes, np.flatnonzero(unseen))}"
    ]


def _between(splits: Mapping[str, Counts], classes: Classes) -> list[str]:
    """Notes on classes that only one of train and val has."""
    if set(splits) != {"train", "val"} or not all(counts.read for counts in splits.values()):
        return []
    train, val = (_seen(splits[split], classes) for split in ("train", "val"))
    notes = []
    if (val & ~train).any():
        names = _names(classes, np.flatnonzero(val & ~train))
        notes.append(
            f"train has no pixel of {names}, which val has, in {_images(splits)}: what is not "
            f"learned scores 0"
        )
    if (train & ~val).any():
        names = _names(classes, np.flatnonzero(train & ~val))
        notes.append(
            f"val has no pixel of {names}, which train has, in {_images(splits)}: such a class has "
            f"no score, or 0 where a pixel is given to it by mistake"
        )
    if val.sum() == 1:
        notes.append(
            f"val: only {classes.names[int(val.argmax())]!r} has pixels, so its scores say little; "
            f"choose images that show more, or more of them"
        )
    return notes


def _seen(counts: Counts, classes: Classes) -> np.ndarray:
    return counts.pixels[: len(classes)] > 0


def _images(splits: Mapping[str, Counts]) -> str:
    """Which images a note is about."""
    read, total = (sum(getattr(c, n) for c in splits.values()) for n in ("read", "total"))
    return (
        f"all {total} images" if read == total else f"the {read} of {total} images that were read"
    )


def _names(classes: Classes, numbers: Iterable[int] | None = None, most: int = 5) -> str:
    chosen = list(range(len(classes)) if numbers is None else numbers)
    listed = ", ".join(classes.names[number][:40] for number in chosen[:most])
    return listed + (f" and {len(chosen) - most} more" if len(chosen) > most else "")
