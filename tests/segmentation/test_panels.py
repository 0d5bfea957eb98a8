# SPDX-License-Identifier: BSD-3-Clause
"""Panels and sheets: names in any script, thin images, panels spread over the source."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from segmentation_runs import CLASSES, measure_quickly, tiny_checkpoint, write_images

from maskattn_kernels.segmentation.data.drawing import legend
from maskattn_kernels.segmentation.data.fonts import drawable_names, font, without_font
from maskattn_kernels.segmentation.prediction import command as predict
from maskattn_kernels.segmentation.prediction.panels import GAP, THINNEST, TILE, TITLE, draw_panel


def drawn(text: str) -> bytes:
    return legend([(text, (200, 30, 60))], 400).tobytes()


@pytest.mark.parametrize("text", ["дорога", "θάλασσα", "größe", "sky"])
def test_names_of_other_alphabets_are_drawn_as_they_are(text: str) -> None:
    classes = replace(CLASSES, names=("a", "b", text))
    assert drawable_names(classes)[2] == text and not without_font(classes)
    box = bytes(font(14, text).getmask("\U0010ffff"))
    assert all(bytes(font(14, text).getmask(letter)) != box for letter in text)
    assert drawn(text) != drawn(text[::-1] + text[0])


def test_names_that_no_font_has_are_numbers_and_told() -> None:
    classes = replace(CLASSES, names=("a", "\ue123\ue124", "b"))
    assert drawable_names(classes) == ("a", "class 2", "b")
    (note,) = without_font(classes)
    assert note.startswith("pictures show '\\ue123\\ue124' as 'class 2': no font here has")


def test_chinese_is_drawn_or_told() -> None:
    classes = replace(CLASSES, names=("细胞", "背景", "b"))
    shown = drawable_names(classes)
    assert shown[0] == "细胞" if not without_font(classes) else shown[:2] == ("class 1", "class 2")


@pytest.mark.parametrize(("height", "width"), [(5, 4000), (4000, 5)])
def test_thin_images_can_be_seen(height: int, width: int, tmp_path) -> None:
    checkpoint = tiny_checkpoint(tmp_path, task="semantic")
    found = checkpoint.segment(np.full((height, width, 3), 90, np.uint8))
    panel = np.asarray(draw_panel(found))
    grey = (panel[GAP + TITLE :] == 90).all(-1)
    shown = grey[:, GAP : GAP + TILE]
    sides = shown.any(1).sum(), shown.any(0).sum()
    assert sorted(sides) == [THINNEST, TILE]


def test_panels_are_spread(tmp_path, monkeypatch) -> None:
    measure_quickly(monkeypatch)
    images = write_images(tmp_path / "images", 9)
    checkpoint = tiny_checkpoint(tmp_path / "checkpoint")
    for limit, expected in ((None, ["00", "04", "08"]), (4, ["00", "02", "03"]), (2, ["00", "01"])):
        out = tmp_path / str(limit)
        predict.predict(images, checkpoint, out, panels=3, limit=limit, batch_size=2)
        assert sorted(path.stem for path in (out / "panels").iterdir()) == expected
        size = Image.open(out / "panels" / "00.png").size
        assert all(Image.open(path).size == size for path in (out / "panels").iterdir())
