# SPDX-License-Identifier: BSD-3-Clause
"""Whether images look like those of the training: limits, and what chance explains."""

import json
import math

import numpy as np
import pytest
from scipy import stats

from maskattn_kernels.segmentation.drift import LIMITS, Drift, Reference, drift_line
from maskattn_kernels.segmentation.model.measures import STATISTICS


def draw(random: np.random.Generator, count: int, shift: float = 0.0) -> list[dict[str, float]]:
    """Statistics of images: correlated, skewed, and moved by some standard deviations."""
    common = random.normal(size=(count, 1))
    values = np.exp(0.5 * (0.6 * common + 0.8 * random.normal(size=(count, len(STATISTICS)))))
    values += shift * values.std()
    return [dict(zip(STATISTICS, row, strict=True)) for row in values.tolist()]


def report(reference: Reference, rows: list[dict[str, float]]) -> dict:
    drift = Drift(reference)
    for number, row in enumerate(rows):
        drift.count(f"{number}", row)
    return drift.report()


@pytest.mark.parametrize(("images", "beyond", "known"), [(10, 3, 50), (1, 1, 101), (400, 90, 600)])
def test_the_chance_is_that_of_the_beta_binomial_distribution(images, beyond, known) -> None:
    reference = Reference.of(draw(np.random.default_rng(0), known), [])
    cut = len(LIMITS) * max(1, known // 200)
    expected = stats.betabinom.sf(beyond - 1, images, cut, known + 1 - cut)
    assert reference.chance(beyond, images) == pytest.approx(expected, rel=1e-6)
    assert reference.chance(0, images) == pytest.approx(1, rel=1e-9)


def test_a_large_folder_has_a_chance_without_overflow() -> None:
    reference = Reference.of(draw(np.random.default_rng(0), 100), [])
    assert reference.chance(60_000, 100_000) < 1e-20 < reference.chance(15_000, 100_000) < 1


@pytest.mark.parametrize("known", [20, 60, 150, 450])
@pytest.mark.parametrize("images", [1, 12, 200])
def test_images_of_the_same_kind_hardly_ever_raise_the_alarm(known: int, images: int) -> None:
    """One folder in a hundred may; the limits of all statistics are counted together."""
    random = np.random.default_rng(known + images)
    alarms = sum(
        report(Reference.of(draw(random, known), []), draw(random, images))["drifted"]
        for _ in range(150)
    )
    assert alarms <= 5  # more than 5 of 150 have a probability of 0.004 at a rate of 1%


@pytest.mark.parametrize(("known", "images"), [(30, 60), (100, 20), (400, 20)])
def test_shifted_images_raise_the_alarm(known: int, images: int) -> None:
    random = np.random.default_rng(3)
    for _ in range(20):
        reference = Reference.of(draw(random, known), [])
        assert report(reference, draw(random, images, shift=9))["drifted"]


@pytest.mark.parametrize("known", [1, 2, 7, 40, 101, 500])
def test_neither_the_validation_nor_the_training_set_is_unusual(known: int) -> None:
    """Also where both differ, as sequences of a few videos do."""
    random = np.random.default_rng(known)
    validation, training = draw(random, known), draw(random, 3 * known, shift=-2)
    reference = Reference.of(validation, training)
    for rows in (validation, training):
        found = report(reference, rows)
        assert not found["drifted"]
        most = len(LIMITS) * (max(1, len(rows) // 200) - 1)
        assert found["unusual"] <= most


def test_few_validation_images_cannot_tell_much() -> None:
    """The fewer there are to compare with, the more images have to be unusual."""
    random = np.random.default_rng(5)
    shifted = draw(random, 100, shift=50)
    for known, images, drifted in (
        (1, 100, False),  # seven limits of six images: any image may lie beyond one of them
        (6, 100, False),
        (10, 5, False),
        (10, 100, True),
        (101, 1, False),  # seven in a hundred images lie beyond a limit, so one tells nothing
        (101, 3, True),
        (800, 1, False),
    ):
        reference = Reference.of(draw(random, known), [])
        found = report(reference, shifted[:images])
        assert found["unusual"] == images
        assert found["drifted"] is drifted, (known, images)


def test_only_the_sides_that_tell_of_trouble_count() -> None:
    usual = dict.fromkeys(STATISTICS, 100.0)
    reference = Reference.of([usual], [])
    assert reference.beyond(usual) == []
    for changes, words in (
        ({"entropy": 101.0}, ["less sure"]),
        ({"entropy": 1.0}, []),
        ({"logit": 99.0}, ["lower logits"]),
        ({"logit": 1000.0, "sharpness": 1000.0, "contrast": 1000.0, "saturation": 1000.0}, []),
        ({"brightness": 99.0}, ["darker"]),
        ({"brightness": 101.0}, ["brighter"]),
        ({"contrast": 99.0, "sharpness": 99.0}, ["less contrast", "blurred"]),
        ({"saturation": 0.0}, ["less colour"]),
        ({"entropy": math.nan}, ["less sure"]),
    ):
        assert reference.beyond(usual | changes) == words


def test_the_report_names_images_reasons_and_medians() -> None:
    usual = [dict.fromkeys(STATISTICS, float(value)) for value in range(100, 201)]
    reference = Reference.of(usual, [])
    dark = {**usual[50], "brightness": 20.0}
    found = report(reference, [dark, usual[3], dark, dark])
    assert found["drifted"] and (found["images"], found["unusual"]) == (4, 3)
    assert found["why"] == {"darker": 3}
    assert found["unusual_images"] == [{"name": n, "why": ["darker"]} for n in ("0", "2", "3")]
    assert found["medians"]["brightness"] == {"here": 20.0, "validation": 150.0}
    assert json.loads(json.dumps(found)) == found
    line = drift_line(found)
    assert line.startswith("3 of 4 images do not look like the training data (darker: 3): expect")
    assert drift_line(report(reference, usual)) == (
        "0 of 101 images look unusual, which may be chance"
    )


def test_nothing_seen_is_no_drift() -> None:
    found = report(Reference.of(draw(np.random.default_rng(0), 10), []), [])
    assert not found["drifted"] and found["medians"] == {}


def test_a_reference_goes_through_json_and_other_versions_are_read() -> None:
    random = np.random.default_rng(0)
    reference = Reference.of(draw(random, 30), draw(random, 10))
    described = json.loads(json.dumps(reference.description()))
    assert Reference.from_description(described) == reference
    described["limits"] = {"smaller": 3.0, "darker": 7.0}
    described["quantiles"] = {"colours": [1, 2], "brightness": [5, 6, 7]}
    other = Reference.from_description(described)
    assert other.limits == {"darker": 7.0} and other.quantiles == {"brightness": (5, 6, 7)}
    assert other.beyond(dict.fromkeys(STATISTICS, 6.9)) == ["darker"]
    other = Reference.from_description(described | {"limits": {}})
    assert other.chance(0, 9) == other.chance(9, 9) == 1


@pytest.mark.parametrize(
    "wrong",
    [
        None,
        3,
        [],
        {},
        {"images": 0, "limits": {}, "quantiles": {}},
        {"images": 10**30, "limits": {}, "quantiles": {}},
        {"images": "3", "limits": {}, "quantiles": {}},
        {"images": 3, "limits": {"darker": math.inf}, "quantiles": {}},
        {"images": 3, "limits": {"darker": 10**400}, "quantiles": {}},
        {"images": 3, "limits": {"darker": [1.0]}, "quantiles": {}},
        {"images": 3, "limits": {}, "quantiles": {"entropy": [1.0, math.nan, 2.0]}},
        {"images": 3, "limits": {}, "quantiles": {"entropy": [1.0]}},
        {"images": 3, "limits": {}, "quantiles": {"entropy": 7}},
        {"images": 3, "limits": 4, "quantiles": {}},
    ],
)
def test_what_is_no_reference_is_refused(wrong: object) -> None:
    with pytest.raises((ValueError, TypeError, KeyError)):
        Reference.from_description(wrong)
