# SPDX-License-Identifier: BSD-3-Clause
"""A class is told by its name: in fine-tuning, in resuming, and with images without labels."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from segmentation_runs import write_images

from maskattn_kernels.segmentation.checkpoints import Checkpoint
from maskattn_kernels.segmentation.model.network import SegmentationNetwork
from maskattn_kernels.segmentation.training import command as training
from maskattn_kernels.segmentation.training.options import ConfigError
from maskattn_kernels.segmentation.training.starting_weights import load_matching

SIZES = {"width": 4, "depth": 1, "task": "semantic"}


def data(root, *classes: str, images: int = 8):
    """Images of grey stripes: class k is stripe k, whose mask has the id 10 + k."""
    shutil.rmtree(root, ignore_errors=True)
    rng = np.random.default_rng(0)
    for number in range(images):
        stripes = np.repeat(np.arange(3), 8)[None].repeat(24, 0)
        noise = rng.integers(0, 20, (24, 24, 1))
        pixels = np.broadcast_to(stripes[..., None] * 100 + noise, (24, 24, 3))
        for folder, values in (("images", pixels), ("masks", stripes + 10)):
            (root / folder).mkdir(parents=True, exist_ok=True)
            Image.fromarray(values.astype(np.uint8)).save(root / folder / f"{number:02d}.png")
    lines = [f"  - {{id: {10 + int(c[-1])}, name: {c[:-1]}}}" for c in classes]
    (root / "classes.yaml").write_text("\n".join(["classes:", *lines, ""]))
    return root


def arguments(root, out, *more: str) -> list[str]:
    sizes = ("--network.width", "4", "--network.depth", "1", "--data.size", "32")
    run = ("--data.workers", "0", "--data.batch_size", "4", "--network.selector", "topk")
    given = ("--config", "own-data", "--root", str(root), "--out", str(out))
    return [*given, *sizes, *run, "--steps", "2", "--val_every", "1", *more]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A short run on the classes dark, grey, light, and its data."""
    folder = tmp_path_factory.mktemp("class-identity")
    root = data(folder / "data", "dark0", "grey1", "light2")
    training.main(arguments(root, folder / "run"))
    return folder


def test_rows_of_heads_go_by_class(run):
    trained = Checkpoint.from_pretrained(run / "run" / "final").network
    network = SegmentationNetwork(4, **SIZES, selector="topk")
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    assert load_matching(network, trained, rows={0: 2, 3: 0}) == []
    theirs = trained.state_dict()
    for name, tensor in network.state_dict().items():
        if name.startswith(("unet.head.", "coarse_heads.")):
            assert torch.equal(tensor[[0, 3]], theirs[name][[2, 0]]), name
            assert torch.equal(tensor[[1, 2]], before[name][[1, 2]]), name
        else:
            assert torch.equal(tensor, theirs[name]), name


@pytest.mark.parametrize(
    ("classes", "told"),
    [
        (("light2", "dark0", "grey1"), "kept light, dark, grey; new none; left out none"),
        (("dark0", "pale1", "light2"), "kept dark, light; new pale; left out grey"),
    ],
)
def test_fine_tuning_goes_by_name(classes, told, run, tmp_path, capsys):
    root = data(tmp_path / "data", *classes)
    more = ("--init_from", str(run / "run" / "final"), "--optimizer.lr", "0", "--steps", "1")
    more = (*more, "--optimizer.muon_lr", "0")
    training.main(arguments(root, tmp_path / "tuned", *more))
    assert f"classes by name: {told}\n" in capsys.readouterr().err
    before = Checkpoint.from_pretrained(run / "run" / "final")
    after = Checkpoint.from_pretrained(tmp_path / "tuned" / "final")
    for number, name in enumerate(after.classes.names):
        if name in before.classes.names:
            there = before.classes.names.index(name)
            ours, theirs = after.network.unet.head.weight, before.network.unet.head.weight
            assert torch.equal(ours[number], theirs[there]), name


@pytest.mark.parametrize(
    ("classes", "says"),
    [
        (("grey1", "dark0", "light2"), "class 0 was 'dark' and is 'grey'"),
        (("dark0", "silver1", "light2"), "class 1 was 'grey' and is 'silver'"),
        (("dark0", "grey1", "light2", "gold3"), "3 then, 4 now"),
    ],
)
def test_a_run_is_not_resumed_with_other_classes(classes, says, run, tmp_path):
    out = shutil.copytree(run / "run", tmp_path / "run")
    (out / "final").rename(out / "lost")
    root = data(tmp_path / "data", *classes)
    with pytest.raises(ConfigError, match=rf"^data: .* other classes \({says}\)") as caught:
        training.main(arguments(root, out, "--ckpt_path", "last"))
    assert "\n" not in str(caught.value)


def test_resuming_with_other_images_is_told(run, tmp_path, capsys):
    out = shutil.copytree(run / "run", tmp_path / "run")
    (out / "final").rename(out / "lost")
    root = data(tmp_path / "data", "dark0", "grey1", "light2")
    training.main(arguments(root, out, "--ckpt_path", "last"))
    assert "are not those of the run to resume" not in capsys.readouterr().err
    (out / "final").rename(out / "lost again")
    for folder in ("images", "masks"):  # as many images as before
        (root / folder / "00.png").rename(root / folder / "zz.png")
    training.main(arguments(root, out, "--ckpt_path", "last"))
    said = capsys.readouterr().err
    assert "note: the images of " in said and "are not those of the run to resume" in said


def test_images_without_labels_need_a_teacher_of_the_same_classes(run, tmp_path):
    root = data(tmp_path / "data", "grey1", "dark0", "light2")
    write_images(tmp_path / "more", 2)
    more = ("--init_from", str(run / "run" / "final"), "--unlabelled", str(tmp_path / "more"))
    says = r"^unlabelled: .*other classes \(class 0 was 'dark' and is 'grey'\)"
    with pytest.raises(ConfigError, match=says):
        training.main(arguments(root, tmp_path / "run", *more))
