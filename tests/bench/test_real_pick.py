# SPDX-License-Identifier: BSD-3-Clause
"""The data sets of bench/real/pick.py and recipe.py, and the rows of drift.py and hybrid.py."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from segmentation_runs import tiny_checkpoint

from bench.real import drift, hybrid, pick, recipe, tables
from maskattn_kernels.segmentation import Sample
from maskattn_kernels.segmentation.drift import Reference
from maskattn_kernels.segmentation.training.options import parse


@pytest.fixture
def camvid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A training set of 50 images, and where the runs lie."""
    root = tmp_path / "camvid"
    random = np.random.default_rng(0)
    for split, count in (("train", 50), ("val", 1)):
        for kind in ("images", "masks"):
            (root / split / kind).mkdir(parents=True)
        for number in range(count):
            pixels = random.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / split / "images" / f"{number:02d}.jpg")
            Image.new("L", (8, 8)).save(root / split / "masks" / f"{number:02d}.png")
    (root / "classes.yaml").write_text("classes:\n  - {id: 0, name: sky}\n")
    monkeypatch.setattr(pick, "CAMVID", root)
    monkeypatch.setattr(pick, "WORK", tmp_path / "work")
    return root


def test_a_rule_adds_to_the_first_images_and_the_seed_draws_them(camvid: Path) -> None:
    tiny_checkpoint(pick.WORK / "start-seed1" / "best")
    first, more = pick.Run("start", 1), pick.Run("entropy+kmeans", 1)
    for run in (first, more, more):  # a run that was stopped is prepared again
        pick.prepare(run)
    names = [
        {path.stem for path in (run.data / "train" / "images").iterdir()} for run in (first, more)
    ]
    assert (len(names[0]), len(names[1])) == (20, 40) and names[0] < names[1]
    masks = {path.stem for path in (more.data / "train" / "masks").iterdir()}
    assert masks == names[1]
    assert more.needs == ("start-seed1",) and first.needs == ()
    assert (more.data / "val" / "images" / "00.jpg").exists()
    pick.prepare(pick.Run("start", 2))
    other = {path.stem for path in (pick.Run("start", 2).data / "train" / "images").iterdir()}
    assert other != names[0]


def test_a_drive_is_held_out_of_the_recipes(camvid: Path, monkeypatch) -> None:
    for name, value in (("CAMVID", camvid), ("DAY", camvid / "day"), ("DUSK", camvid / "dusk")):
        monkeypatch.setattr(recipe, name, value)
    monkeypatch.setattr(recipe, "HELD_OUT", "1")  # of 00 to 49
    run = recipe.Run("dice", 1)
    for _ in range(2):  # two runs may prepare at once
        recipe.prepare(run)
    day, dusk = (
        {path.stem for path in (camvid / split / "train" / "images").iterdir()}
        for split in ("day", "dusk")
    )
    assert dusk == {f"1{digit}" for digit in range(10)} and len(day) == 40 and not day & dusk
    assert len(list((camvid / "dusk" / "val" / "masks").iterdir())) == 10
    assert len(list((camvid / "day" / "val" / "images").iterdir())) == 1


def test_each_recipe_is_a_config_of_train() -> None:
    usual = parse(recipe.Run(recipe.USUAL, 0).options)
    for part in recipe.PARTS:
        config = parse(recipe.Run(part, 0).options)
        assert (config == usual) == (part == recipe.USUAL), part
    found = {"dice-seed0": {"val": 51.25, "dusk": 40.0}, "dice-seed1": {"val": 53.25, "dusk": 44.0}}
    assert tables.recipe_table(found).splitlines()[2:] == [
        "| dice | 52.2 ± 1.4 | - | 42.0 ± 2.8 | - | 2 |"
    ]
    found["usual-seed1"] = {"val": 52.0, "dusk": 45.0}
    lines = tables.recipe_table(found).splitlines()[2:]
    assert lines[0] == "| dice | 52.2 ± 1.4 | 1.2 | 42.0 ± 2.8 | -1.0 | 2 |"
    assert lines[1] == "| usual | 52.0 | - | 45.0 | - | 1 |"


def test_steps_of_the_hybrid_are_rows(tmp_path, monkeypatch, capsys) -> None:
    for split in ("train", "val"):
        for kind in ("images", "masks"):
            (tmp_path / "camvid" / split / kind).mkdir(parents=True)
        pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "camvid" / split / "images" / "0.png")
        Image.new("L", (64, 48)).save(tmp_path / "camvid" / split / "masks" / "0.png")
    classes = "\n".join(f"  - {{id: {n}, name: {'abc'[n]}}}" for n in range(3))
    (tmp_path / "camvid" / "classes.yaml").write_text(f"classes:\n{classes}\n")
    checkpoint = tiny_checkpoint(tmp_path / "checkpoint", task="semantic", selector="none")
    checkpoint.classes = replace(checkpoint.classes, names=("a", "b", "c"), is_thing=(False,) * 3)
    checkpoint.save_pretrained(tmp_path / "checkpoint")
    monkeypatch.setattr(hybrid, "DATA", tmp_path)
    for module in (hybrid, tables):
        monkeypatch.setattr(module, "HYBRID", tmp_path / "hybrid.json")
    assert hybrid.main(["--checkpoint", str(tmp_path / "checkpoint")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == [
        "| whole at low resolution",
        *(f"| hybrid, {share:.0%} of the tiles" for share in hybrid.SHARES),
        "| all tiles",
    ]


def test_drift_is_told_of_a_set_and_of_groups_of_it(tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "checkpoint", task="semantic", selector="none")
    torch.manual_seed(0)

    class Noise:
        classes = replace(checkpoint.classes, is_thing=(False, False, False))

        def __len__(self) -> int:
            return 45

        def __getitem__(self, index: int) -> Sample:
            pixels = np.random.default_rng(index).integers(0, 256, (40, 40, 3), dtype=np.uint8)
            return Sample(f"{index}", pixels)

    with pytest.raises(ValueError, match="it has no reference"):
        drift.measured(checkpoint, Noise())
    images = [Noise()[index] for index in range(45)]
    rows = [found.measured.statistics for found in checkpoint.segment(images, measured=True)]
    checkpoint.reference = Reference.of(rows, [])
    checkpoint.classes = replace(checkpoint.classes, names=("a", "b", "c"))  # others: no labels
    usual = drift.measured(checkpoint, Noise())
    assert not usual["drifted"] and usual["groups"] == 4 and usual["mIoU"] is None
    for name in ("darkened to 0.25", "blurred, sigma 4"):
        found = drift.measured(checkpoint, drift.Changed(Noise(), drift.CHANGES[name]))
        assert found["drifted"] and found["unusual"] == 45 == found["images"], name
        assert found["groups that drifted"] == 4, name
