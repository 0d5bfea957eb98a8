# SPDX-License-Identifier: BSD-3-Clause
"""`maskattn predict`: its files, sources and errors."""

import json
import re
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from segmentation_runs import CLASSES, measure_quickly, tiny_checkpoint, write_images

from maskattn_kernels.common.atomic import WriteError
from maskattn_kernels.common.background import ahead, map_ahead
from maskattn_kernels.segmentation.data.coco_format import ids_from_rgb
from maskattn_kernels.segmentation.data.errors import DataError
from maskattn_kernels.segmentation.prediction import command as predict
from maskattn_kernels.segmentation.prediction.frames import frames
from maskattn_kernels.segmentation.prediction.panels import error_picture


@pytest.fixture(autouse=True)
def short_measurements(monkeypatch):
    measure_quickly(monkeypatch)


@pytest.fixture
def checkpoint(tmp_path) -> str:
    tiny_checkpoint(tmp_path / "checkpoint")
    return str(tmp_path / "checkpoint")


def test_a_folder_of_images(checkpoint, tmp_path, capsys):
    images, truth, out = tmp_path / "images", tmp_path / "truth", tmp_path / "out"
    write_images(images, 5)
    truth.mkdir()
    for number in range(5):
        Image.fromarray(np.full((24, 40), 7, np.uint8)).save(truth / f"{number:02d}.png")
    arguments = ["--checkpoint", checkpoint, "--out", str(out), "--batch_size", "2"]
    assert predict.main([str(images), *arguments, "--truth", str(truth), "--panels", "2"]) == 0
    labels = Image.open(out / "labels" / "03.png")
    assert labels.mode == "P" and labels.size == (40, 24)
    found = np.asarray(labels)
    assert set(found.flat) <= set(CLASSES.ids)
    shades = np.reshape(labels.getpalette(), (-1, 3))
    assert shades[list(CLASSES.ids)].tolist() == [list(color) for color in CLASSES.colors]
    annotation = json.loads((out / "panoptic.json").read_text())["annotations"][3]
    category = {s["id"]: s["category_id"] for s in annotation["segments_info"]}
    ids = ids_from_rgb(np.asarray(Image.open(out / "panoptic" / "03.png")))
    for number, there in category.items():
        assert set(found[ids == number]) == {there}
    assert [path.name for path in sorted((out / "panels").iterdir())] == ["00.png", "04.png"]
    summary = json.loads((out / "summary.json").read_text())
    assert summary["images"] == 5 and summary["network"]["gflops"] > 0
    printed = capsys.readouterr().out
    assert printed.startswith("5 images, ") and "GFLOPs" in printed and "peak memory" in printed


def test_a_minimum_score_leaves_out_objects(checkpoint, tmp_path):
    images = write_images(tmp_path / "images", 2)
    for out, more in (("all", []), ("none", ["--min_score", "1"])):
        arguments = ["--checkpoint", checkpoint, "--out", str(tmp_path / out), "--panels", "0"]
        assert predict.main([str(images), *arguments, *more]) == 0
        summary = json.loads((tmp_path / out / "summary.json").read_text())
        assert summary["min_score"] == float(bool(more))
    every, none = (
        json.loads((tmp_path / out / "annotations.json").read_text())["annotations"]
        for out in ("all", "none")
    )
    assert every and not none
    assert not np.asarray(Image.open(tmp_path / "none" / "instances" / "00.png")).any()
    same = [np.asarray(Image.open(tmp_path / out / "labels" / "00.png")) for out in ("all", "none")]
    np.testing.assert_array_equal(*same)


@pytest.mark.parametrize(
    ("ids", "mode", "expected"),
    [
        ((10, 200, 9), "P", (10, 200, 9)),
        ((1, 300, 65000), "I;16", (1, 300, 65000)),
        ((1, 2, 70_000), "P", (0, 1, 2)),  # no PNG has so many bits: numbers
    ],
)
def test_labels_are_the_ids_of_the_data_set(ids, mode, expected, tmp_path):
    checkpoint = tiny_checkpoint(tmp_path / "checkpoint")
    checkpoint.classes = replace(CLASSES, ids=ids)
    images, out = write_images(tmp_path / "images", 1), tmp_path / "out"
    predict.predict(images, checkpoint, out, panels=0)
    picture = Image.open(out / "labels" / "00.png")
    assert picture.mode == mode
    semantic = checkpoint.segment(images / "00.png").semantic
    np.testing.assert_array_equal(np.asarray(picture), np.array(expected)[semantic])
    if expected == ids:  # so they can be read back, as truth for instance
        predict.predict(images, checkpoint, tmp_path / "again", panels=1, truth=out / "labels")


def test_truth_that_cannot_be_used_is_told(checkpoint, tmp_path, capsys):
    images, truth = write_images(tmp_path / "images", 4), tmp_path / "truth"
    truth.mkdir()
    Image.fromarray(np.full((24, 40), 3, np.uint8)).save(truth / "00.png")
    Image.fromarray(np.full((24, 40), 7, np.uint8)).save(truth / "01.png")
    (truth / "02.png").write_bytes(b"no picture")
    out = tmp_path / "out"
    arguments = [str(images), "--checkpoint", checkpoint, "--out", str(out), "--truth", str(truth)]
    assert predict.main(arguments) == 1
    failed = [line for line in capsys.readouterr().err.splitlines() if line.startswith("failed: ")]
    assert len(failed) == 3
    assert "00.png: unknown id 3; expected the ids of the checkpoint's classes" in failed[0]
    assert "02.png: not an image" in failed[1] and failed[2].endswith("03.png: no such file")
    assert len(list((out / "labels").iterdir())) == len(list((out / "panels").iterdir())) == 4


def with_bad_images(folder):
    """Six images; the third is cut off, the fifth is a page of a web server."""
    write_images(folder, 6)
    cut = (folder / "02.png").read_bytes()
    (folder / "02.png").write_bytes(cut[: len(cut) // 2])
    (folder / "04.png").write_text("<html>404</html>")
    return folder


def test_bad_images_stop_no_folder(checkpoint, tmp_path, capsys):
    images, out = with_bad_images(tmp_path / "images"), tmp_path / "out"
    arguments = [str(images), "--checkpoint", checkpoint, "--out", str(out), "--batch_size", "2"]
    assert predict.main([*arguments, "--panels", "6"]) == 1
    good = [f"{number:02d}.png" for number in (0, 1, 3, 5)]
    for folder in ("labels", "panoptic", "panels"):
        assert sorted(path.name for path in (out / folder).iterdir()) == good
    annotations = json.loads((out / "panoptic.json").read_text())["annotations"]
    assert [row["file_name"] for row in annotations] == good
    summary = json.loads((out / "summary.json").read_text())
    assert summary["images"] == 4 and len(summary["failed"]) == 2
    failed = [line for line in capsys.readouterr().err.splitlines() if line.startswith("failed: ")]
    assert "02.png" in failed[0] and "04.png" in failed[1]


def test_a_source_without_a_readable_image_is_one_error(checkpoint, tmp_path):
    images = write_images(tmp_path / "images", 3)
    for path in images.iterdir():
        path.write_bytes(b"x")
    with pytest.raises(DataError, match=r"none of 3 images can be read; the first: .*00\.png"):
        predict.predict(images, checkpoint, tmp_path / "out", panels=0)


def test_a_film_that_breaks_off_keeps_what_came_before(checkpoint, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (4, 40, 40, 3), dtype=np.uint8)
    first, *more = map(Image.fromarray, noise)
    path = tmp_path / "scan.tif"
    first.save(path, save_all=True, append_images=more)
    path.write_bytes(path.read_bytes()[:-3000])
    summary = predict.predict(path, checkpoint, tmp_path / "out", panels=0)
    assert summary["images"] == 3 and "scan.tif" in summary["failed"][0]


@pytest.mark.parametrize("hidden", [(), ("cv2",)], ids=["opencv", "imageio"])
def test_a_video_that_breaks_off_is_told(hidden, video, checkpoint, tmp_path, monkeypatch):
    if hidden:
        pytest.importorskip("av", reason="imageio has no plugin for videos here")
    for package in hidden:
        monkeypatch.setitem(sys.modules, package, None)
    content = video.read_bytes()
    starts = [found.start() for found in re.finditer(b"00dc", content)]
    video.write_bytes(content[: starts[3]])
    summary = predict.predict(video, checkpoint, tmp_path / "out", panels=0)
    assert 0 < summary["images"] < 5
    assert any(f"{summary['images']} of 5 frames could be read" in n for n in summary["notes"])


def test_an_interrupt_keeps_what_is_done(checkpoint, tmp_path):
    images = write_images(tmp_path / "images", 6)

    def stop(done):
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match="stopped after 3 images; their results are in "):
        predict.predict(images, checkpoint, tmp_path / "out", panels=0, batch_size=1, progress=stop)
    rows = json.loads((tmp_path / "out" / "panoptic.json").read_text())["annotations"]
    assert [row["file_name"] for row in rows] == ["00.png", "01.png", "02.png"]
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["images"] == 3


def test_files_that_are_passed_over_are_told(checkpoint, tmp_path, capsys):
    images = write_images(tmp_path / "images", 1)
    (images / "photo.heic").touch()
    out = str(tmp_path / "out")
    assert predict.main([str(images), "--checkpoint", checkpoint, "--out", out]) == 0
    told = capsys.readouterr().err.splitlines()
    assert f"note: {images}: 1 files passed over (1 .heic)" in told


def test_batches_and_order_change_nothing(checkpoint, tmp_path):
    images = write_images(tmp_path / "images", 5)
    for size in ("1", "4"):
        out = str(tmp_path / size)
        arguments = ["--checkpoint", checkpoint, "--out", out, "--panels", "0"]
        predict.main([str(images), *arguments, "--batch_size", size])
    for path in sorted((tmp_path / "1" / "labels").iterdir()):
        assert path.read_bytes() == (tmp_path / "4" / "labels" / path.name).read_bytes()


def test_one_stream_or_two(tmp_path):
    """With one thread a batch after the other, with more two at a time: the same predictions."""
    checkpoint = tiny_checkpoint(tmp_path / "checkpoint", selector="local")
    images = write_images(tmp_path / "images", 7)
    before, found = torch.get_num_threads(), {}
    try:
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            source = frames(str(images))
            found[threads] = list(checkpoint.segment_stream(source, batch_size=2, attended=3))
            # Threads that begin later have as many as before.
            assert list(map_ahead(lambda _: torch.get_num_threads(), [0], threads=1)) == [threads]
    finally:
        torch.set_num_threads(before)
    for threads in (2, 4):
        assert [p.name for p in found[threads]] == [f"{number:02d}" for number in range(7)]
        assert [len(p.attended) > 0 for p in found[threads]] == [True] * 3 + [False] * 4
        for one, other in zip(found[1], found[threads], strict=True):
            np.testing.assert_array_equal(one.semantic, other.semantic)
            np.testing.assert_array_equal(one.instance, other.instance)
            np.testing.assert_allclose(one.scores, other.scores, rtol=1e-5)


def test_frames_of_a_film(tmp_path):
    pictures = [Image.new("RGB", (8, 6), color) for color in ("red", "green", "blue")]
    pictures[0].save(tmp_path / "film.gif", save_all=True, append_images=pictures[1:])
    found = list(frames(str(tmp_path / "film.gif")))
    assert [read().name for read in found] == ["film-000000", "film-000001", "film-000002"]
    assert [read().image.reshape(-1, 3)[0].argmax() for read in found] == [0, 1, 2]
    assert all(read().image.shape == (6, 8, 3) for read in found)


@pytest.fixture
def video(tmp_path):
    """Five frames, red with a green part that grows from the left."""
    cv2 = pytest.importorskip("cv2", reason="no OpenCV here")
    path = tmp_path / "drive.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10, (64, 48))
    for number in range(5):
        picture = np.zeros((48, 64, 3), np.uint8)
        picture[..., 2] = 250  # OpenCV's red comes last
        picture[:, : 10 * number + 8] = (0, 250, 0)
        writer.write(picture)
    writer.release()
    return path


def check_video(found, name):
    assert [read().name for read in found] == [f"{name}-{number:06d}" for number in range(5)]
    for number, read in enumerate(found):
        pixels = read().image
        assert pixels.shape == (48, 64, 3) and pixels.dtype == np.uint8
        assert pixels[24, 60].argmax() == 0 and pixels[24, 10 * number + 4].argmax() == 1


def test_a_video_through_opencv(video):
    check_video(list(frames(str(video))), "drive")


def test_a_video_through_imageio(video, monkeypatch):
    pytest.importorskip("imageio", reason="no imageio here")
    pytest.importorskip("av", reason="imageio has no plugin for videos here")
    monkeypatch.setitem(sys.modules, "cv2", None)
    check_video(list(frames(str(video))), "drive")


def test_a_camera(video, monkeypatch):
    """A film stands in for the camera, which differs for OpenCV in its number alone."""
    import cv2

    films = {3: str(video)}
    opened = cv2.VideoCapture
    monkeypatch.setattr(cv2, "VideoCapture", lambda source: opened(films.get(source, "none")))
    check_video(list(frames("3")), "camera3")
    with pytest.raises(DataError, match="4: OpenCV cannot open it"):
        list(frames("4"))


def test_predict_of_a_video(video, checkpoint, tmp_path):
    summary = predict.predict(str(video), checkpoint, tmp_path / "out", panels=1, limit=4)
    assert summary["images"] == 4
    labels = sorted(path.name for path in (tmp_path / "out" / "labels").iterdir())
    assert labels == [f"drive-{number:06d}.png" for number in range(4)]


@pytest.mark.parametrize("hidden", [(), ("cv2",)], ids=["opencv", "imageio"])
def test_a_file_that_is_no_video(hidden, tmp_path, monkeypatch):
    pytest.importorskip("cv2", reason="no OpenCV here")
    pytest.importorskip("imageio", reason="no imageio here")
    for package in hidden:
        monkeypatch.setitem(sys.modules, package, None)
    (tmp_path / "bad.mp4").write_bytes(b"nonsense" * 100)
    with pytest.raises(DataError, match=r"bad\.mp4: (OpenCV cannot open it|reading videos needs)"):
        list(frames(str(tmp_path / "bad.mp4")))


def test_a_video_without_its_packages(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    monkeypatch.setitem(sys.modules, "imageio", None)
    (tmp_path / "a.mp4").touch()
    for source in (str(tmp_path / "a.mp4"), "0"):
        with pytest.raises(DataError, match="needs OpenCV; pip install opencv-python-headless"):
            list(frames(source))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda path: None, "no such file or folder"),
        (lambda path: path.mkdir(), "no images there"),
        (lambda path: (path.mkdir(), (path / "a.png").write_bytes(b"x")), "a.png: not an image"),
    ],
)
def test_sources_that_cannot_be_used(make, says, checkpoint, tmp_path):
    make(tmp_path / "source")
    with pytest.raises(DataError, match=says):
        predict.predict(str(tmp_path / "source"), checkpoint, tmp_path / "out", panels=0)


def test_a_folder_that_cannot_be_written(checkpoint, tmp_path):
    images = write_images(tmp_path / "images", 1)
    (tmp_path / "out").touch()
    with pytest.raises(WriteError, match=r"^cannot write .*out"):
        predict.predict(str(images), checkpoint, tmp_path / "out")


def test_errors_in_threads_reach_the_caller():
    def fail_at_two(number):
        if number == 2:
            raise ValueError("two")
        return number

    for results in (map_ahead(fail_at_two, range(9)), ahead(map(fail_at_two, range(9)))):
        assert [next(results), next(results)] == [0, 1]
        with pytest.raises(ValueError, match="two"):
            next(results)


def test_error_pictures():
    picture = error_picture(np.array([[0, 1, 1]]), np.array([[0, 0, 255]]))
    right, wrong, ignored = picture[0].tolist()
    assert wrong[0] > 200 > wrong[1] and min(right) > 200 and len(set(ignored)) == 1
