# SPDX-License-Identifier: BSD-3-Clause
"""`maskattn train`: options, fine-tuning, unlabelled images, errors."""

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from segmentation_runs import tiny_arguments, tiny_checkpoint, write_images

from maskattn_kernels.segmentation.checkpoints import Checkpoint
from maskattn_kernels.segmentation.data.digit_scenes import DigitScenes
from maskattn_kernels.segmentation.data.errors import DataError
from maskattn_kernels.segmentation.model.network import SegmentationNetwork
from maskattn_kernels.segmentation.training import command as training
from maskattn_kernels.segmentation.training.csv_log import read_log
from maskattn_kernels.segmentation.training.optimizer import OptimizerOptions
from maskattn_kernels.segmentation.training.options import ConfigError, parse, preset_names


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A checkpoint for the classes of digit scenes."""
    folder = tmp_path_factory.mktemp("trained")
    classes = DigitScenes("val", count=1).classes
    torch.manual_seed(0)
    network = SegmentationNetwork(len(classes), classes.things, width=4, depth=1, keep=0.5)
    Checkpoint(network, classes, size=32).save_pretrained(folder)
    return folder


def test_logs_and_the_folder_of_a_run(tmp_path):
    out = tmp_path / "run"
    training.main(tiny_arguments(out))
    names = {path.name for path in out.iterdir()}
    assert names == {
        *("config.yaml", "train.csv", "validation.csv", "tensorboard"),
        *("last.ckpt", "best", "final"),
    }
    rows = read_log(out / "train.csv")
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert {"loss/loss", "loss/center", "keep/down1 queries", "keep/up2 keys"} <= rows[0].keys()
    # Every 3 steps, and after the last one.
    assert [row["step"] for row in read_log(out / "validation.csv")] == [3, 4]
    assert Checkpoint.from_pretrained(out / "final").metrics.keys() >= {"mIoU", "PQ", "AP"}


def test_a_folder_named_like_a_preset_is_no_config(tmp_path, monkeypatch):
    (tmp_path / "own-data").mkdir()
    monkeypatch.chdir(tmp_path)
    assert parse(["--config", "own-data"]).data.name == "folder"


@pytest.mark.parametrize("name", preset_names())
def test_presets_parse_and_come_back_from_their_yaml(name, tmp_path):
    config = parse(["--config", name, "--root", "somewhere"])
    assert config.data.root == Path("somewhere")
    (tmp_path / "again.yaml").write_text(training.to_yaml(config))
    again = parse(["--config", str(tmp_path / "again.yaml")])
    assert yaml.safe_load(training.to_yaml(again)) == yaml.safe_load(training.to_yaml(config))


def test_a_data_set_is_named_as_in_the_other_commands_and_wins_over_the_config():
    preset = ["--config", "digit-scenes-small"]
    config = parse([*preset, "--set", "legend=yes", "--set", "count=7", "--data.root", "a"])
    assert config.data.name == "digit-scenes"
    assert config.data.options == {"count": 7, "legend": True}
    assert config.data.root == Path("a"), "a key of the config can be an argument, as any other"
    config = parse(["--data", "coco", "--root", "b", *preset])
    assert (config.data.name, config.data.root) == ("coco", Path("b"))
    assert config.data.options == {"count": 500}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--steps", "many"], "^steps: expected int, got many$"),
        (["--steps", "0"], "^steps: expected a whole number from 1, got 0$"),
        (["--network.depht", "3"], "unrecognized arguments: --network.depht 3"),
        (
            ["--config", "nowhere"],
            "^config: 'nowhere' is neither a file nor one of the presets ade",
        ),
        (["--network", "3"], "^network: "),
        (["--confidence", "2"], "^confidence: expected a number from 0 to 1, got 2"),
        (["--sure_share", "0"], "^sure_share: expected above 0, to 1, got 0"),
        (["--unlabelled", "x"], "^unlabelled: needs --teacher, "),
        (["--teacher", "x"], "^teacher: needs --unlabelled, "),
        (["--init_from", "x"], "^x: no such folder$"),
        (["--trainer.strategy", "ddp_spawn"], "^trainer.strategy: expected"),
        (["--out", "/dev/null/x"], "^out: cannot make the folder /dev/null/x: Not a directory$"),
        (["--data.name", "cats"], "^name: expected one of digit-scenes"),
        (["--data", "cats"], "^argument --data: invalid choice: 'cats'"),
        (["--root"], "^argument --root: expected one argument"),
        (["--set", "legend"], "^argument --set: expected KEY=VALUE, got 'legend'"),
        (["--root", "x", "--data", "folder"], "^unknown option 'count' for folder; known: none"),
        (["--network.selector", "best"], "^selector: expected one of"),
        (["--ckpt_path", "last"], "^ckpt_path: there is no .*last.ckpt$"),
    ],
)
def test_wrong_input_is_one_line(arguments, says, tmp_path):
    with pytest.raises(ValueError, match=says) as caught:
        training.main(tiny_arguments(tmp_path / "run", *arguments))
    assert "\n" not in str(caught.value)


def test_fine_tuning_with_other_classes_and_a_frozen_encoder(tmp_path, capsys):
    tiny_checkpoint(tmp_path / "trained", selector="threshold")
    out = tmp_path / "run"
    config = tmp_path / "own.yaml"
    config.write_text(
        "data: {name: digit-scenes, size: 32, batch_size: 2, options: {count: 4}}\n"
        "steps: 2\nval_every: 2\n"
    )
    arguments = ["--config", str(config), "--out", str(out)]
    training.main(
        [*arguments, "--freeze_encoder", "true", "--init_from", str(tmp_path / "trained")]
    )
    said = capsys.readouterr().err
    assert "new: unet.head.weight, unet.head.bias, coarse_heads.0.weight, " in said
    tuned = Checkpoint.from_pretrained(out / "final")
    assert tuned.network.config["selector"] == "threshold"  # taken from the checkpoint
    written = parse(["--config", str(out / "config.yaml")])
    assert written.optimizer.muon_lr == OptimizerOptions.muon_lr / 4  # not to forget what it knows
    before = load_file(tmp_path / "trained" / "model.safetensors")
    changed = {
        name.split(".")[1]
        for name, tensor in tuned.network.state_dict().items()
        if name.startswith("unet.") and not (name in before and torch.equal(tensor, before[name]))
    }
    assert {"ups", "head"} <= changed
    assert not changed & {"stem", "downs", "down_attention", "bottleneck"}


def test_unlabelled_images_take_part(trained, tmp_path, capsys):
    write_images(tmp_path / "more", 3)
    (tmp_path / "more" / "photo.heic").touch()
    more = ("--unlabelled", str(tmp_path / "more"), "--init_from", str(trained))
    more = (*more, "--network.depth", "1")
    with pytest.raises(ConfigError, match="other classes"):
        tiny_checkpoint(tmp_path / "other")
        other = ("--init_from", str(tmp_path / "other"), *more[:2])
        training.main(tiny_arguments(tmp_path / "run", *other))
    training.main(tiny_arguments(tmp_path / "run", *more, steps=2))
    told = capsys.readouterr().err
    assert "3 images without labels; " in told and "1 files passed over (1 .heic)" in told


def test_a_student_starts_anew_and_may_be_another_network(trained, tmp_path, capsys):
    write_images(tmp_path / "more", 3)
    more = ("--unlabelled", str(tmp_path / "more"), "--teacher", str(trained))
    training.main(tiny_arguments(tmp_path / "run", *more, "--network.width=8", steps=2))
    assert "3 images without labels; " in capsys.readouterr().err
    student = Checkpoint.from_pretrained(tmp_path / "run" / "final").network
    assert student.config["width"] == 8


def test_unlabelled_images_take_part_in_a_balanced_order(trained, tmp_path, capsys):
    write_images(tmp_path / "more", 3)
    more = ("--unlabelled", str(tmp_path / "more"), "--init_from", str(trained))
    more = (*more, "--network.depth", "1", "--data.balance", "true")
    training.main(tiny_arguments(tmp_path / "run", *more, steps=2))
    assert "counting the pixels of the classes of 13 images" in capsys.readouterr().err


def test_pixels_of_low_confidence_are_void(trained, tmp_path):
    from maskattn_kernels.segmentation.training.self_training import (
        LabelledAndPseudo,
        PseudoLabelled,
    )

    images = write_images(tmp_path / "more", 5)
    teacher = Checkpoint.from_pretrained(trained)
    sure = PseudoLabelled(teacher, images, share=1.0)
    unsure = PseudoLabelled(teacher, images, share=1.0, confidence=1.0)
    assert (sure.kept, unsure.kept) == (1.0, 0.0)
    assert set(unsure[0].semantic.flatten()) == {255} and not unsure[0].instance.any()
    assert sure[0].semantic.shape == sure[0].image.shape[:2]
    both = LabelledAndPseudo(DigitScenes("train", count=4), [1, 2], sure)
    assert len(both) == 6 + 5  # two labelled images three times, five of the others
    assert both[2].name == both[0].name and both[6].name == "00"


def test_the_surest_pixels_of_each_class_keep_it(trained, tmp_path):
    from maskattn_kernels.segmentation.training.self_training import PseudoLabelled

    draws = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), np.uint8)
    for number, pixels in enumerate(draws):  # of the network's size: a pixel has its own entropy
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    teacher = Checkpoint.from_pretrained(trained)
    found = teacher.segment(list(draws), measured=True)
    learned = PseudoLabelled(teacher, tmp_path, share=0.4)
    labels = np.stack([one.semantic for one in found])
    entropy = np.stack([one.measured.entropy for one in found])
    got = np.stack([learned[i].semantic for i in range(5)])
    kept = got != 255
    assert (got[kept] == labels[kept]).all() and learned.kept == pytest.approx(kept.mean())
    assert len(np.unique(labels)) > 1
    for label in np.unique(labels):
        inside, of = entropy[kept & (labels == label)], entropy[labels == label]
        bound = np.quantile(of, 0.4)
        assert 0.4 * of.size <= inside.size <= (of < 1.02 * bound).sum()
        assert inside.max() <= 1.02 * bound
    assert not any(learned[i].instance[~kept[i]].any() for i in range(5))


def test_unlabelled_images_that_cannot_be_read_are_left_out(trained, tmp_path):
    from maskattn_kernels.segmentation.training.self_training import PseudoLabelled

    images = write_images(tmp_path / "more", 4)
    (images / "01.png").write_bytes(b"x")
    teacher = Checkpoint.from_pretrained(trained)
    learned = PseudoLabelled(teacher, images, share=1.0)
    assert [learned[index].name for index in range(len(learned))] == ["00", "02", "03"]
    (note,) = learned.notes
    assert note.startswith("left out: ") and "01.png: not an image" in note
    for path in images.iterdir():
        path.write_bytes(b"x")
    with pytest.raises(DataError, match=r"more: no image there can be read, such as .*00\.png"):
        PseudoLabelled(teacher, images, share=1.0)
