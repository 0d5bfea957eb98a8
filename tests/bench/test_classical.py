# SPDX-License-Identifier: BSD-3-Clause
"""The classical baseline: touching discs are told apart on dark and on bright ground."""

import importlib.util

import numpy as np
import pytest
from repository import ROOT

from maskattn_kernels.segmentation import Classes, Sample

SPEC = importlib.util.spec_from_file_location("classical", ROOT / "bench/real/classical.py")
classical = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(classical)

CLASSES = Classes(("ground", "disc"), (False, True), ((0, 0, 0), (255, 0, 0)), (0, 1))


def discs(ground: int, ink: int) -> Sample:
    """Two that touch and one alone."""
    ys, xs = np.mgrid[:64, :64]
    instance = np.zeros((64, 64), np.int32)
    for number, (y, x) in enumerate(((20, 15), (20, 35), (50, 45)), start=1):
        instance[(ys - y) ** 2 + (xs - x) ** 2 <= 100] = number
    image = np.where(instance[..., None] > 0, ink, ground).astype(np.uint8).repeat(3, axis=2)
    return Sample("discs", image, (instance > 0).astype(np.uint8), instance)


@pytest.mark.parametrize(("ground", "ink"), [(10, 40), (230, 150)])
def test_touching_discs_are_told_apart(ground, ink):
    sample = discs(ground, ink)
    found, scores = classical.segment(sample.image)
    assert len(scores) == 3 and (scores > 0.5).all()
    pairs = {*zip(sample.instance.ravel().tolist(), found.ravel().tolist(), strict=True)}
    assert len({b for a, b in pairs if a and b}) == 3

    class Both:
        classes = CLASSES

    row = classical.score(Both, [sample])
    assert row["AP50"] == pytest.approx(100) and row["PQ"] > 85


def test_an_empty_image_has_no_objects():
    found, scores = classical.segment(np.full((16, 16, 3), 7, np.uint8))
    assert not found.any() and len(scores) == 0
