# SPDX-License-Identifier: BSD-3-Clause
"""Drift: whether images look like those that a network was trained and validated on.

At the end of training a `Reference` keeps limits of a few statistics of the images, see
`Measures`. `Drift` counts the images that lie beyond one of them, and tells whether these are more
than chance explains.
"""

import math
import sys
from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from maskattn_kernels.segmentation.data.errors import shown
from maskattn_kernels.segmentation.model.measures import STATISTICS
from maskattn_kernels.segmentation.results import Segmentation

__all__ = ["Drift", "Reference", "drift_line", "drift_of", "tell_drift"]

QUANTILES = (0.01, 0.5, 0.99)
SHARE, CHANCE = 0.05, 0.01  # drift: a larger share of images beyond limits, and so improbable
ONE_IN = 200  # of the images that a limit is taken from, at or beyond it
MOST, LARGEST = 2**31, 1e30  # of images, and of a statistic, in a file


Statistics: TypeAlias = Mapping[str, float]
"""Of an image, by the names in `STATISTICS`."""


class _Limit(NamedTuple):
    """A statistic with the side of it that tells of trouble, and the word for that."""

    statistic: str
    sign: int
    word: str


#: Only these sides: a network that is surer than usual, or a sharper image, needs no warning.
LIMITS = (
    _Limit("entropy", +1, "less sure"),
    _Limit("logit", -1, "lower logits"),
    _Limit("brightness", -1, "darker"),
    _Limit("brightness", +1, "brighter"),
    _Limit("contrast", -1, "less contrast"),
    _Limit("sharpness", -1, "blurred"),
    _Limit("saturation", -1, "less colour"),
)


@dataclass(frozen=True)
class Reference:
    """What is usual: limits of the statistics of the images of a training.

    Attributes:
        images: of the validation set, that it was made of.
        limits: by the words of `LIMITS`. A limit is the most extreme value of the validation images
            (or the j-th, of 200 j images or more); or that of the training images, if it is the
            looser one, so that neither set is unusual.
        quantiles: 1%, 50% and 99% over the validation images, by `STATISTICS`.

    Raises:
        ValueError: a number is out of its range.
    """

    images: int
    limits: Mapping[str, float]
    quantiles: Mapping[str, tuple[float, ...]]

    def __post_init__(self) -> None:
        if not isinstance(self.images, int) or not 1 <= self.images < MOST:
            raise ValueError(f"images: expected a whole number from 1, got {shown(self.images)}")
        for number in (*self.limits.values(), *chain(*self.quantiles.values())):
            if not isinstance(number, float | int) or not abs(number) < LARGEST:
                raise ValueError(f"limits, quantiles: expected numbers, got {shown(number)}")
        if any(len(row) != len(QUANTILES) for row in self.quantiles.values()):
            raise ValueError(f"quantiles: expected {len(QUANTILES)} of each statistic")

    @classmethod
    def of(cls, validation: Sequence[Statistics], training: Sequence[Statistics]) -> "Reference":
        """The reference of two sets of images.

        Args:
            validation: statistics of each image; at least one.
            training: the same of some images; may be empty.
        """
        sets = [rows for rows in (validation, training) if rows]
        limits = {
            limit.word: limit.sign * max(_extreme(rows, limit) for rows in sets) for limit in LIMITS
        }
        quantiles = {
            name: tuple(np.quantile([row[name] for row in validation], QUANTILES).tolist())
            for name in STATISTICS
        }
        return cls(len(validation), limits, quantiles)

    def beyond(self, statistics: Statistics) -> list[str]:
        """The words of `LIMITS` for what is unusual about an image of these ``statistics``."""
        return [
            limit.word
            for limit in LIMITS
            if limit.word in self.limits and not self._within(limit, statistics)
        ]

    def _within(self, limit: _Limit, statistics: Statistics) -> bool:
        """False of NaN."""
        return limit.sign * statistics[limit.statistic] <= limit.sign * self.limits[limit.word]

    def chance(self, beyond: int, images: int) -> float:
        """At most how probable so many images beyond a limit are, if the images are as usual.

        A new image lies beyond the j-th most extreme of n values with a probability that is a beta
        variable with parameters j and n + 1 - j, whatever the distribution of the values is (Wilks,
        1941); and beyond one of t such limits with at most one of parameters t j and n + 1 - t j
        (Tukey, 1947). So the number of images beyond is at most beta-binomial. It takes images to
        be drawn one by one; those of a video are more alike.

        Args:
            beyond: images beyond a limit.
            images: all that were looked at.
        """
        cut = len(self.limits) * _beyond_of(self.images)
        rest = self.images + 1 - cut
        return _beta_binomial_tail(beyond, images, cut, rest) if rest > 0 and cut > 0 else 1.0

    def description(self) -> dict[str, Any]:
        """For JSON."""
        quantiles = {name: list(row) for name, row in self.quantiles.items()}
        return {"images": self.images, "limits": dict(self.limits), "quantiles": quantiles}

    @classmethod
    def from_description(cls, described: Any) -> "Reference":
        """The reference that is ``described``; what other versions have in it is left out.

        Raises:
            ValueError, TypeError, KeyError: it is something else.
        """
        limits, quantiles = described["limits"], described["quantiles"]
        words = [limit.word for limit in LIMITS if limit.word in limits]
        names = [name for name in STATISTICS if name in quantiles]
        return cls(
            described["images"],
            {word: limits[word] for word in words},
            {name: tuple(quantiles[name]) for name in names},
        )


def _beyond_of(images: int) -> int:
    """How many of so many known images lie at or beyond a limit."""
    return max(1, images // ONE_IN)


def _extreme(rows: Sequence[Statistics], limit: _Limit) -> float:
    """The limit by ``rows``, times its sign."""
    values = sorted(limit.sign * row[limit.statistic] for row in rows)
    return values[-_beyond_of(len(rows))]


def _beta_binomial_tail(least: int, draws: int, a: int, b: int) -> float:
    """P(X >= least) of X beta-binomial with ``draws`` and parameters ``a`` and ``b``."""

    def log_beta(x: int, y: int) -> float:
        return math.lgamma(x) + math.lgamma(y) - math.lgamma(x + y)

    def log_choose(k: int) -> float:
        return math.lgamma(draws + 1) - math.lgamma(k + 1) - math.lgamma(draws - k + 1)

    terms = (
        math.exp(log_choose(k) + log_beta(k + a, draws - k + b) - log_beta(a, b))
        for k in range(least, draws + 1)
    )
    return min(1.0, math.fsum(terms))


class Drift:
    """Counts the images that are not as a `Reference` has them.

    Args:
        reference: of the checkpoint.

    Example:
        >>> known = [dict.fromkeys(STATISTICS, 50.0 + n) for n in range(100)]
        >>> drift = Drift(Reference.of(known, []))
        >>> for number in range(20):
        ...     drift.count(f"{number}.jpg", dict.fromkeys(STATISTICS, 10.0))
        >>> report = drift.report()
        >>> report["drifted"], report["why"]["darker"]
        (True, 20)
    """

    def __init__(self, reference: Reference) -> None:
        self.reference = reference
        self._values = {name: array("f") for name in reference.quantiles}
        self._images = 0
        self._unusual: list[dict[str, Any]] = []

    def add(self, found: Segmentation) -> None:
        """Count an image, whose segmentation was ``found`` with its measures."""
        self.count(found.name, found.measured.statistics)

    def count(self, name: str, statistics: Statistics) -> None:
        """Count an image.

        Args:
            name: for the list of unusual images.
            statistics: of the image.
        """
        self._images += 1
        for known, values in self._values.items():
            values.append(statistics[known])
        words = self.reference.beyond(statistics)
        if words:
            self._unusual.append({"name": name, "why": words})

    def report(self) -> dict[str, Any]:
        """Whether the images "drifted", and what is unusual about which of them; for JSON.

        They did if more than 5% of them lie beyond a limit, and that is less probable than 1%.
        """
        count = len(self._unusual)
        chance = self.reference.chance(count, self._images)
        why = Counter(word for row in self._unusual for word in row["why"])
        medians = {
            name: {
                "here": float(np.median(values)),
                "validation": self.reference.quantiles[name][1],
            }
            for name, values in self._values.items()
            if values
        }
        return {
            "drifted": count > SHARE * self._images and chance < CHANCE,
            "images": self._images,
            "unusual": count,
            "chance": chance,
            "why": dict(why.most_common()),
            "medians": medians,
            "unusual_images": self._unusual,
        }


def drift_of(reference: Reference | None, *, whole: bool) -> Drift | None:
    """What counts for a command; None where nothing can be told.

    Args:
        reference: of the checkpoint, if it has one.
        whole: whether images are seen as a whole, as those of the reference were: not in tiles.
    """
    return Drift(reference) if reference is not None and whole else None


def tell_drift(report: Mapping[str, Any] | None) -> None:
    """Print what a `Drift.report` says: a warning on stderr if the images drifted.

    Args:
        report: None = nothing is known, and nothing is printed.
    """
    if report is not None and report["drifted"]:
        print(f"warning: {drift_line(report)}", file=sys.stderr)
    elif report is not None:
        print(drift_line(report))


def drift_line(report: Mapping[str, Any]) -> str:
    """What a `Drift.report` says, for people."""
    count, images = report["unusual"], report["images"]
    why = ", ".join(f"{word}: {number}" for word, number in report["why"].items())
    reasons = f" ({why})" if why else ""
    if report["drifted"]:
        return (
            f"{count} of {images} images do not look like the training data{reasons}: expect more "
            "errors; `maskattn pick` chooses images to label"
        )
    return f"{count} of {images} images look unusual{reasons}, which may be chance"
