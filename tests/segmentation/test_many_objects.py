# SPDX-License-Identifier: BSD-3-Clause
"""More than 64 and more than 100 objects of an image: all count, or the limit is told."""

import numpy as np
import pytest
import torch
from PIL import Image

from maskattn_kernels import cli
from maskattn_kernels.segmentation.checkpoints import Checkpoint
from maskattn_kernels.segmentation.data.sample import MAX_OBJECTS, Classes
from maskattn_kernels.segmentation.model.grouping import group
from maskattn_kernels.segmentation.model.network import Outputs, SegmentationNetwork
from maskattn_kernels.segmentation.model.targets import instance_targets
from maskattn_kernels.segmentation.scoring.metrics import SegmentationMetrics

CLASSES = Classes(("dish", "cell"), (False, True), ((0, 0, 0), (255, 0, 0)), (0, 1))


def cells(count: int, size: int = 128) -> np.ndarray:
    """Numbers of ``count`` squares of 3 x 3 pixels, on a grid."""
    instance = np.zeros((size, size), dtype=np.int32)
    places = [(y, x) for y in range(1, size - 3, 5) for x in range(1, size - 3, 5)]
    for number, (y, x) in enumerate(places[:count], start=1):
        instance[y : y + 3, x : x + 3] = number
    assert instance.max() == count
    return instance


def perfect(instance: torch.Tensor, most: int) -> Outputs:
    """What a network would say that has learned these objects."""
    semantic = (instance > 0).long()
    targets = instance_targets(semantic, instance, CLASSES.things, sigma=1.0, max_instances=most)
    logits = torch.nn.functional.one_hot(semantic, 2).permute(0, 3, 1, 2) * 9.0
    return Outputs(logits, targets.center, targets.offset, None, {})


@pytest.mark.parametrize("count", [70, 150, 300])
def test_a_perfect_network_scores_all_objects(count):
    instance = torch.from_numpy(cells(count))[None]
    semantic = (instance > 0).long()
    found = group(
        perfect(instance, count), CLASSES.things, window=3, max_instances=max(count, MAX_OBJECTS)
    )
    assert len(torch.unique(found.instance)) == count + 1
    metrics = SegmentationMetrics(CLASSES)
    metrics.update(found, {"semantic": semantic, "instance": instance})
    scores = metrics.compute()
    assert scores["AP"] == pytest.approx(100) and scores["PQ"] == pytest.approx(100)


def test_targets_of_many_objects_are_those_of_each():
    count = 150
    instance = torch.from_numpy(cells(count))[None]
    together = instance_targets((instance > 0).long(), instance, [1], max_instances=200)
    alone = torch.zeros_like(together.center)
    for number in range(1, count + 1):
        only = torch.where(instance == number, instance, 0)
        alone = torch.maximum(alone, instance_targets((only > 0).long(), only, [1]).center)
    assert torch.equal(together.center, alone)
    assert together.numbers.max() == count and together.center_counts.all()


def own_data(root, count: int):
    for folder in ("images", "masks", "instances"):
        (root / folder).mkdir(parents=True)
    instance = cells(count)
    for number in range(6):
        pixels = np.repeat((instance > 0)[..., None] * 200 + number, 3, axis=2)
        for folder, values in (
            ("images", pixels.astype(np.uint8)),
            ("masks", (instance > 0).astype(np.uint8)),
            ("instances", instance.astype(np.uint16)),
        ):
            Image.fromarray(values).save(root / folder / f"{number}.png")
    (root / "classes.yaml").write_text(
        "classes:\n  - {id: 0, name: dish}\n  - {id: 1, name: cell, thing: true}\n"
    )
    return root


def test_the_commands_tell_the_limit_and_an_option_moves_it(tmp_path, capsys):
    root = own_data(tmp_path / "data", 300)
    data = ("--data", "folder", "--root", str(root))
    assert cli.main(["check-data", *data, "--out", str(tmp_path / "sheets")]) == 0
    told = "images have more than 256 objects, up to 300; a network learns and finds 256"
    assert told in capsys.readouterr().out
    sizes = ("--network.width", "4", "--network.depth", "1", "--data.workers", "0")
    train = ["train", "--config", "own-data", "--root", str(root), *sizes, "--data.batch_size", "1"]
    train = [*train, "--steps", "1"]
    assert cli.main([*train, "--out", str(tmp_path / "few")]) == 0
    assert told in capsys.readouterr().err
    more = ("--network.max_objects", "300", "--out", str(tmp_path / "all"))
    assert cli.main([*train, *more]) == 0
    assert "objects, up to" not in capsys.readouterr().err
    assert Checkpoint.from_pretrained(tmp_path / "all" / "best").network.max_objects == 300
    for name, is_told in (("few", True), ("all", False)):
        checkpoint = ("--checkpoint", str(tmp_path / name / "best"))
        report = ("--out", str(tmp_path / "eval.json"))
        assert cli.main(["eval", *checkpoint, *data, *report]) == 0
        line = "note: an image has 300 objects, and this network finds 256 at most; train it with"
        assert (line in capsys.readouterr().err) == is_told


def test_max_objects_is_checked():
    with pytest.raises(ValueError, match=r"^max_objects: expected an int from 1, got 0$"):
        SegmentationNetwork(2, [1], width=4, depth=1, max_objects=0)
