# SPDX-License-Identifier: BSD-3-Clause
"""The task of a run is what the labels of the data allow, and a run says which one it is."""

import json

import numpy as np
import pytest
from PIL import Image
from segmentation_runs import tiny_checkpoint

from maskattn_kernels.segmentation.checkpoints import Checkpoint
from maskattn_kernels.segmentation.data.batches import Batches
from maskattn_kernels.segmentation.training import command as training
from maskattn_kernels.segmentation.training.options import ConfigError
from maskattn_kernels.segmentation.training.task import chosen_task

CLASSES = """
classes:
  - {id: 0, name: dish}
  - {id: 1, name: seed, thing: THING}
"""


def seeds(root, thing: bool = True, objects: str | None = "labelled"):
    """Pictures of two discs each: own data, with or without labels of objects."""
    rows, columns = np.mgrid[:32, :32]
    for name in ("images", "masks", *(("instances",) if objects else ())):
        (root / name).mkdir(parents=True)
    for number in range(8):
        one = (rows - 8) ** 2 + (columns - 6 - number) ** 2 < 20
        two = (rows - 23) ** 2 + (columns - 24 + number) ** 2 < 20
        image = np.repeat(((one | two) * 180 + 30 + number)[..., None], 3, axis=2)
        instance = (one + 2 * two) if objects == "labelled" else np.zeros_like(rows)
        Image.fromarray(image.astype(np.uint8)).save(root / "images" / f"{number}.png")
        Image.fromarray((one | two).astype(np.uint8)).save(root / "masks" / f"{number}.png")
        if objects:
            path = root / "instances" / f"{number}.png"
            Image.fromarray(instance.astype(np.uint8)).save(path)
    (root / "classes.yaml").write_text(CLASSES.replace("THING", json.dumps(thing)))
    return root


def tiny(root, out, *more: str) -> list[str]:
    sizes = ("--network.width", "4", "--network.depth", "1", "--data.size", "32", "--steps", "1")
    loader = ("--data.workers", "0", "--data.batch_size", "2")
    return ["--config", "own-data", "--root", str(root), "--out", str(out), *sizes, *loader, *more]


def test_own_data_with_objects_learns_them(tmp_path, capsys):
    seeds(tmp_path / "data")
    training.main(tiny(tmp_path / "data", tmp_path / "run"))
    assert "task: panoptic (objects of seed are labelled)" in capsys.readouterr().err
    assert Checkpoint.from_pretrained(tmp_path / "run" / "final").network.task == "panoptic"
    assert "  task: panoptic" in (tmp_path / "run" / "config.yaml").read_text()


@pytest.mark.parametrize(
    ("data", "asked", "task", "reason"),
    [
        ({}, "auto", "panoptic", "objects of seed are labelled"),
        ({}, "instance", "instance", "as asked for"),
        ({}, "semantic", "semantic", "as asked for"),
        ({"objects": None}, "auto", "semantic", "objects of seed are not labelled, so they are"),
        ({"objects": "blank"}, "auto", "semantic", "objects of seed are not labelled"),
        ({"thing": False}, "auto", "semantic", "no class is a thing"),
        ({"objects": None}, "semantic", "semantic", "as asked for"),
    ],
)
def test_the_task_is_what_the_labels_allow(data, asked, task, reason, tmp_path):
    batches = Batches("folder", seeds(tmp_path / "data", **data), size=32)
    chosen, why = chosen_task(asked, batches)
    assert chosen == task and why.startswith(reason)


@pytest.mark.parametrize("asked", ["panoptic", "instance"])
@pytest.mark.parametrize("objects", [None, "blank"])
def test_a_task_that_the_labels_do_not_allow_is_refused(asked, objects, tmp_path):
    seeds(tmp_path / "data", objects=objects)
    says = f"^network.task: {asked} needs labels of the objects of seed, and the training"
    with pytest.raises(ConfigError, match=says):
        training.main(tiny(tmp_path / "data", tmp_path / "run", "--network.task", asked))
    assert not (tmp_path / "run").exists()


def test_the_task_of_a_checkpoint_is_not_that_of_other_data(tmp_path, capsys):
    """Fine-tuning from a panoptic network on data whose objects are not labelled."""
    tiny_checkpoint(tmp_path / "panoptic")
    seeds(tmp_path / "data", objects=None)
    more = ("--init_from", str(tmp_path / "panoptic"), "--network.depth", "2")
    training.main(tiny(tmp_path / "data", tmp_path / "run", *more))
    assert "task: semantic (objects of seed are not labelled" in capsys.readouterr().err
