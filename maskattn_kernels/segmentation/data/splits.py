# SPDX-License-Identifier: BSD-3-Clause
"""Which images of own data train and which validate: by folders, or by a hash of the name."""

from collections.abc import Iterable
from hashlib import blake2b
from pathlib import Path

from maskattn_kernels.segmentation.data.errors import DataError

__all__ = ["SPLIT_NAMES", "name_of_split", "share_out"]

SPLIT_NAMES = {"train": ("train", "training"), "val": ("val", "valid", "validation")}
"""What tools call the two splits."""


def name_of_split(root: Path, split: str, form: str = "{}") -> str | None:
    """What own data calls a split, of `SPLIT_NAMES` in any case; None = it has no splits.

    Args:
        root: of the data.
        split: "train" or "val".
        form: the file or folder of a split in the root, with {} for its name.

    Raises:
        DataError: there is something for one split only; a share of that as the other one could
            hold the same images.
    """
    found = {
        known: next((name for name in _spelled(names) if (root / form.format(name)).exists()), None)
        for known, names in SPLIT_NAMES.items()
    }
    for known, other in (("train", "val"), ("val", "train")):
        if found[known] and not found[other]:
            raise DataError(
                f"{root}: there is {form.format(found[known])} and nothing for {other}; add "
                f"{form.format(other)}, or leave both out to have a fifth of all images for val"
            )
    return found[split]


def _spelled(names: Iterable[str]) -> list[str]:
    """The names as tools spell them: train, Train, TRAIN."""
    return [form(name) for form in (str.lower, str.capitalize, str.upper) for name in names]


def share_out(names: list[str], split: str, where: Path, val_share: float = 0.2) -> list[str]:
    """The part of a split, where files do not say: by a hash of each name.

    So an image that is added or removed moves no other from one split to the other, and the
    validation set has about, not exactly, its share. Only where one of the two would be empty, the
    name whose hash is nearest goes there.

    Args:
        names: of all images.
        split: "train" or "val".
        where: the images are, for the error.
        val_share: the fraction that is for validation.

    Raises:
        DataError: fewer than two names.

    Example:
        >>> share_out(["a", "b", "c", "d", "e"], "val", Path("own/images"))
        ['e']
        >>> share_out(["a", "c", "e", "x"], "val", Path("own/images"))
        ['e']
    """
    if len(names) < 2:
        raise DataError(f"{where}: one image only; two are needed, to train and to validate")
    places = {name: _place(name) for name in names}
    cut = max(val_share, min(places.values()))
    val = {name for name in names if places[name] <= cut}
    if len(val) == len(names):
        val.remove(max(names, key=places.__getitem__))
    return [name for name in names if (name in val) == (split == "val")]


def _place(name: str) -> float:
    """A number from 0 to 1 that depends on the name alone."""
    return (
        int.from_bytes(
            blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big"
        )
        / 2**64
    )
