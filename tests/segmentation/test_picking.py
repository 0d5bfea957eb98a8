# SPDX-License-Identifier: BSD-3-Clause
"""`maskattn pick`: which images to label next."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from segmentation_runs import tiny_checkpoint, write_images

from maskattn_kernels.segmentation.checkpoints import Checkpoint
from maskattn_kernels.segmentation.data.errors import DataError
from maskattn_kernels.segmentation.picking.command import main, pick
from maskattn_kernels.segmentation.picking.rules import RULES, choose


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of an untrained network whose entropy differs from image to image."""
    folder = tmp_path_factory.mktemp("checkpoint")
    made = tiny_checkpoint(folder, selector="none")
    with torch.no_grad():
        made.network.unet.head.weight.mul_(20)
    made.save_pretrained(folder)
    return folder


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Six images from dark to bright, each of other noise."""
    folder = write_images(tmp_path / "pool", 6)
    for number, path in enumerate(sorted(folder.iterdir())):
        pixels = np.asarray(Image.open(path)) // (6 - number)
        Image.fromarray(pixels).save(path)
    return folder


def arguments(images: Path, checkpoint: Path, out: Path, *more: str) -> list[str]:
    return [str(images), "--checkpoint", str(checkpoint), "--out", str(out), *more]


def test_k_centre_takes_the_farthest_each_time() -> None:
    random = np.random.default_rng(0)
    entropy, pooled = random.random(40), random.normal(size=(40, 5)) * [1, 10, 0.1, 1, 0]
    found = choose("kcenter", entropy, pooled, 12)
    spread = pooled.std(0)
    points = pooled / np.where(spread > 0, spread, 1)
    expected = [int(entropy.argmax())]
    while len(expected) < 12:
        to_chosen = [min(np.linalg.norm(p - points[c]) for c in expected) for p in points]
        expected.append(int(np.argmax(to_chosen)))
    assert found.tolist() == expected


@pytest.mark.parametrize("seed", range(5))
def test_k_means_takes_the_most_typical_image_of_each_group(seed: int) -> None:
    """Four groups far apart, the largest first; each has an image in its middle."""
    random = np.random.default_rng(seed)
    corners = np.array([[0.0, 0.0], [0.0, 90.0], [90.0, 0.0], [90.0, 90.0]])
    groups = []
    for corner, pairs in zip(corners, (15, 10, 5, 2), strict=True):
        offsets = random.normal(size=(pairs, 2))
        groups.append(corner + np.concatenate([[[0, 0]], offsets, -offsets]))
    pooled = np.concatenate(groups)
    found = choose("entropy+kmeans", np.full(len(pooled), 0.3), pooled, 4, seed)
    np.testing.assert_array_equal(pooled[found], corners)


def test_k_means_makes_more_groups_where_the_network_is_unsure() -> None:
    random = np.random.default_rng(2)
    pooled, entropy = random.random((400, 2)), np.full(400, 0.01)
    unsure = pooled[:, 0] > 0.5
    entropy[unsure] = 1.0
    for seed in range(3):
        found = choose("entropy+kmeans", entropy, pooled, 20, seed)
        assert unsure[found].mean() > 0.6
        equal = choose("entropy+kmeans", np.ones(400), pooled, 20, seed)
        assert 0.3 < unsure[equal].mean() < 0.7


def test_uncertain_and_different_are_among_the_most_uncertain() -> None:
    random = np.random.default_rng(1)
    entropy, pooled = random.random(100), random.normal(size=(100, 3))
    by_entropy = choose("entropy", entropy, pooled, 25)
    assert entropy[by_entropy].tolist() == sorted(entropy, reverse=True)[:25]
    found = choose("entropy+kcenter", entropy, pooled, 10)
    assert set(found) < set(by_entropy) and found[0] == by_entropy[0]
    assert set(found) != set(by_entropy[:10])  # they differ, so not simply the first ones
    least = min_distance(pooled[found])
    assert least > 2 * min_distance(pooled[by_entropy[:10]])
    # More picks than a quarter: twice as many candidates as picks.
    found = choose("entropy+kcenter", entropy, pooled, 30)
    assert set(found) < set(choose("entropy", entropy, pooled, 60)) and len(set(found)) == 30


def min_distance(points: np.ndarray) -> float:
    distances = np.linalg.norm(points[:, None] - points, axis=2)
    return distances[np.triu_indices(len(points), 1)].min()


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_picks_each_image_once_even_of_equal_ones(rule: str) -> None:
    found = choose(rule, np.zeros(7), np.ones((7, 4), np.float16), 7, seed=3)
    assert sorted(found) == list(range(7))
    some = choose(rule, np.zeros(7), np.ones((7, 4), np.float16), 3, seed=3)
    assert len(set(some)) == 3 and set(some) <= set(range(7))
    again = choose(rule, np.zeros(7), np.ones((7, 4), np.float16), 3, seed=3)
    assert some.tolist() == again.tolist()
    if rule != "entropy+kmeans":  # its groups depend on how many there are
        assert some.tolist() == found[:3].tolist()


def test_random_picks_depend_on_the_seed_alone() -> None:
    entropy, pooled = np.arange(50.0), np.zeros((50, 2))
    first, again, other = (choose("random", entropy, pooled, 10, seed) for seed in (0, 0, 1))
    assert first.tolist() == again.tolist() != other.tolist()


def test_the_list_the_picture_and_the_links(
    images: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(arguments(images, checkpoint, out, "--count", "3", "--rule", "entropy")) == 0
    report = json.loads((out / "picked.json").read_text())
    loaded, files = Checkpoint.from_pretrained(checkpoint), sorted(images.iterdir())
    measured = [found.measured for found in loaded.segment(files, measured=True)]
    entropy = [one.statistics["entropy"] for one in measured]
    assert max(entropy) > 1.02 * min(entropy)
    order = np.argsort(entropy)[::-1][:3]
    assert [row["file"] for row in report["picked"]] == [str(files[i]) for i in order]
    assert [row["name"] for row in report["picked"]] == [files[i].stem for i in order]
    found = [row["entropy"] for row in report["picked"]]
    np.testing.assert_allclose(found, np.sort(entropy)[::-1][:3], rtol=1e-4)
    assert report["mean_entropy"]["all"] == pytest.approx(np.mean(entropy), rel=1e-4)
    assert (report["rule"], report["images"], report["failed"]) == ("entropy", 6, [])
    links = sorted((out / "images").iterdir())
    assert [link.resolve() for link in links] == sorted(files[i].resolve() for i in order)
    sheet = Image.open(out / "picked.png")
    assert sheet.width > 6 * 224 and sheet.height > 100
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].endswith(str(files[order[0]])) and len(printed) == 5
    assert printed[3].startswith(f"picked 3 of 6 images of {images}: mean entropy ")

    # Another run leaves no links of the one before, and files of others.
    (out / "images" / "note.txt").write_text("mine")
    pick(images, loaded, 1, out, rule="entropy")
    names = sorted(path.name for path in (out / "images").iterdir())
    assert names == sorted([files[order[0]].name, "note.txt"])


def test_a_labelled_data_set_gives_its_images(images: Path, checkpoint: Path, tmp_path: Path):
    for inside in ("own/images", "split/train/images"):
        (tmp_path / inside).parent.mkdir(parents=True)
        images.rename(tmp_path / inside)
        (tmp_path / inside).parent.joinpath("masks").mkdir()
        top = tmp_path / inside.split("/")[0]
        report = pick(top, checkpoint, 2, tmp_path / "out" / inside)
        assert report["folder"] == str(tmp_path / inside) and report["images"] == 6
        (tmp_path / inside).rename(images)


def test_folders_of_folders(images: Path, checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "top").mkdir()
    images.rename(tmp_path / "top" / "day")
    write_images(tmp_path / "top" / "night", 2)
    report = pick(tmp_path / "top", checkpoint, 8, tmp_path / "out", recursive=True)
    names = sorted(row["name"] for row in report["picked"])
    assert names[0] == "day/00" and names[-1] == "night/01" and len(set(names)) == 8
    assert (tmp_path / "out" / "images" / "night" / "00.png").is_symlink()


def test_images_that_cannot_be_read_are_left_out(
    images: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (images / "02.png").write_text("<html>404</html>")
    assert main(arguments(images, checkpoint, tmp_path / "out", "--count", "6")) == 1
    (failed,) = (s for s in capsys.readouterr().err.splitlines() if s.startswith("failed: "))
    assert "02.png" in failed
    report = json.loads((tmp_path / "out" / "picked.json").read_text())
    assert sorted(row["name"] for row in report["picked"]) == ["00", "01", "03", "04", "05"]
    for path in images.iterdir():
        path.write_text("<html>404</html>")
    with pytest.raises(DataError, match=r"^\S+pool: no image there can be read, such as .*00\.png"):
        pick(images, checkpoint, 1, tmp_path / "out")


def test_what_cannot_be_picked_from_is_told_in_one_line(
    images: Path, checkpoint: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with pytest.raises(DataError, match=r"^count: expected 1 to 6, the images of \S+pool, got 7$"):
        pick(images, checkpoint, 7, out)
    with pytest.raises(DataError, match=r"^count: expected 1 to 6, .* got 0$"):
        pick(images, checkpoint, 0, out)
    with pytest.raises(DataError, match=r"^folder: expected a folder of images, got \S+00\.png$"):
        pick(images / "00.png", checkpoint, 1, out)
    with pytest.raises(DataError, match=r"^folder: expected a folder of images, got nowhere$"):
        pick("nowhere", checkpoint, 1, out)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"^\S+empty: no images there"):
        pick(tmp_path / "empty", checkpoint, 1, out)
    with pytest.raises(
        ValueError, match=r"^rule: expected one of .entropy\+kmeans., .* got 'margin'$"
    ):
        pick(images, checkpoint, 1, out, rule="margin")
    assert not out.exists()


def test_images_of_others_stay(images: Path, checkpoint: Path, tmp_path: Path) -> None:
    others = write_images(tmp_path / "own" / "images", 1)
    with pytest.raises(DataError, match=r"^out: \S+own holds images/, which no `maskattn pick`"):
        pick(images, checkpoint, 1, tmp_path / "own")
    assert os.listdir(others) == ["00.png"]


def test_an_interrupt_ends_it_and_leaves_the_list_of_before(
    images: Path, checkpoint: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    pick(images, checkpoint, 2, out)
    before = (out / "picked.json").read_text()

    def stop(done: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pick(images, checkpoint, 3, out, progress=stop)
    assert (out / "picked.json").read_text() == before
    assert len(os.listdir(out / "images")) == 2


def test_a_file_system_without_links_is_told(
    images: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*paths: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "symlink", refuse)
    report = pick(images, checkpoint, 2, tmp_path / "out")
    assert report["notes"][-1].endswith("images: no links to the images: Operation not supported")
    assert (tmp_path / "out" / "picked.json").exists()
