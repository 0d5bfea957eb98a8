# SPDX-License-Identifier: BSD-3-Clause
"""`Checkpoint.segment` and `segment_stream`: every kind of image, one way, its own size."""

import io
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from segmentation_runs import CLASSES, tiny_checkpoint

from maskattn_kernels.segmentation.checkpoints import Checkpoint
from maskattn_kernels.segmentation.data.errors import DataError
from maskattn_kernels.segmentation.data.frame import whole_frame
from maskattn_kernels.segmentation.data.sample import VOID, Sample
from maskattn_kernels.segmentation.infer import Pipeline
from maskattn_kernels.segmentation.model.grouping import group
from maskattn_kernels.segmentation.model.network import Outputs
from maskattn_kernels.segmentation.model.own_size import at_size
from maskattn_kernels.segmentation.results import Segmentation

SIZES = [(24, 40), (9, 7), (64, 64), (32, 32), (1, 50)]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Checkpoint:
    """An untrained network that finds all its classes, and several objects, in noise."""
    made = tiny_checkpoint(tmp_path_factory.mktemp("checkpoint"))
    with torch.no_grad():
        made.network.unet.head.weight.mul_(20)
        made.network.objects[-1].bias[0] = 1.0  # centres everywhere
    return made


def noise(height: int, width: int, channels: int = 3) -> np.ndarray:
    random = np.random.default_rng(height * width)
    return random.integers(0, 256, (height, width, channels), dtype=np.uint8)


IMAGES = [noise(*size) for size in SIZES]


def assert_same(one: Segmentation, other: Segmentation) -> None:
    for part in ("image", "semantic", "instance", "labels"):
        np.testing.assert_array_equal(getattr(one, part), getattr(other, part), err_msg=part)
    # The order of sums in the network depends on the size of the batch.
    np.testing.assert_allclose(one.scores, other.scores, rtol=1e-5)


def test_results_are_those_of_the_network_at_the_images_own_sizes(checkpoint: Checkpoint) -> None:
    for image, found in zip(IMAGES, checkpoint.segment(IMAGES, batch_size=2), strict=True):
        frame = whole_frame(Sample("", image), checkpoint.size, "fit").image
        assert max(frame.shape[:2]) == 32
        with torch.inference_mode():
            pixels = torch.from_numpy(frame.transpose(2, 0, 1).copy())[None]
            network = checkpoint.network
            outputs = network(pixels)
            expected = group(outputs, CLASSES.things)
        size = image.shape[:2]
        semantic, instance = at_size(outputs.semantic[0], expected, size, CLASSES.things)
        np.testing.assert_array_equal(found.frame_semantic, expected.semantic[0])
        np.testing.assert_array_equal(found.frame_instance, expected.instance[0])
        np.testing.assert_array_equal(found.semantic, semantic)
        np.testing.assert_array_equal(found.instance, instance)
        scores = np.trim_zeros(expected.scores[0].numpy(), "b")
        # Folded norms round otherwise: logits differ by less than 1e-4 of their deviation.
        np.testing.assert_allclose(found.scores, scores, rtol=1e-4)
        assert (found.semantic.dtype, found.instance.dtype) == (np.uint8, np.int32)
        assert found.semantic.shape == found.instance.shape == size
        assert found.overlay().size == size[::-1]


def test_every_kind_of_image_gives_the_same(checkpoint: Checkpoint, tmp_path: Path) -> None:
    pixels = noise(24, 40)
    Image.fromarray(pixels).save(tmp_path / "street.png")
    tensor = torch.from_numpy(pixels.transpose(2, 0, 1).copy())
    kinds = [
        tmp_path / "street.png",
        str(tmp_path / "street.png"),
        Image.open(tmp_path / "street.png"),
        Image.fromarray(pixels),
        pixels,
        pixels / np.float32(255),
        tensor,
        tensor / 255,
        (tensor / 255).double().requires_grad_(),
        Sample("street", pixels),
        lambda: Sample("street", pixels),
    ]
    expected = checkpoint.segment(pixels)
    assert len(np.unique(expected.semantic)) > 1 and expected.objects
    assert expected.name == "image-000000"
    found = checkpoint.segment(kinds)
    names = [one.name for one in found]
    assert names[:3] == ["street"] * 3 and names[4] == "image-000004"
    for kind, one in zip(kinds, found, strict=True):
        assert_same(one, expected)
        assert_same(checkpoint.segment(kind), expected)


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1", "CMYK"])
def test_pictures_are_read_as_files_are(mode: str, checkpoint: Checkpoint, tmp_path: Path) -> None:
    picture = Image.fromarray(noise(20, 30, 4), "RGBA").convert(mode)
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    picture.save(path)
    from_file, from_picture = checkpoint.segment([path, picture])
    assert_same(from_file, from_picture)
    if mode in ("L", "RGBA"):
        array = np.asarray(picture)
        assert_same(checkpoint.segment(array), from_file)
        channels = array[None] if mode == "L" else array.transpose(2, 0, 1)
        assert_same(checkpoint.segment(torch.from_numpy(channels.copy())), from_file)
    if mode == "L":
        assert_same(checkpoint.segment(array[..., None]), from_file)


def test_one_in_one_out_and_a_list_in_a_list_out(checkpoint: Checkpoint) -> None:
    image = noise(24, 40)
    assert isinstance(checkpoint.segment(image), Segmentation)
    assert len(checkpoint.segment([image])) == len(checkpoint.segment((image,))) == 1
    assert checkpoint.segment([]) == []
    batch = np.stack([image, image[::-1]])
    for several in (batch, torch.from_numpy(batch.transpose(0, 3, 1, 2).copy())):
        first, second = checkpoint.segment(several)
        assert_same(first, checkpoint.segment(image))
        assert_same(second, checkpoint.segment(np.ascontiguousarray(image[::-1])))


TENSOR = torch.zeros(3, 4, 4)


@pytest.mark.parametrize(
    ("wrong", "kind", "says"),
    [
        (Path("nowhere.png"), DataError, "^nowhere.png: no such file$"),
        (3.5, TypeError, r"^images\[1\]: expected a path, .*, got float$"),
        (b"png", TypeError, r"^images\[1\]: expected a path, .*, got bytes$"),
        (np.zeros((3, 4, 5), np.uint8), DataError, r"^images\[1\]: .*\(H,W,3\).* got \(3, 4, 5\)$"),
        (np.zeros((4, 4, 2), np.uint8), DataError, r"^images\[1\]: expected .*got \(4, 4, 2\)$"),
        (np.zeros((0, 4, 3), np.uint8), DataError, r"^images\[1\]: expected .*got \(0, 4, 3\)$"),
        (np.zeros((4, 4), np.int64), TypeError, r"^images\[1\]: expected uint8, .* got int64$"),
        (np.zeros((4, 4), bool), TypeError, r"^images\[1\]: expected uint8, .* got bool$"),
        (torch.zeros(5, 4, 3), DataError, r"^images\[1\]: .*\(3,H,W\).* got \(5, 4, 3\)$"),
        (TENSOR + 1.5, DataError, r"^images\[1\]: .* from 0 to 1, got 1\.5 to 1\.5$"),
        (TENSOR * float("nan"), DataError, r"^images\[1\]: .* from 0 to 1, got nan to nan$"),
        (TENSOR.long(), TypeError, r"^images\[1\]: expected uint8, .* got int64$"),
        (torch.zeros(3, 4, 5, device="meta"), TypeError, r"^images\[1\]: .* dense .*, meta$"),
        (TENSOR.to_sparse(), TypeError, r"^images\[1\]: expected a dense tensor .*sparse_coo"),
        (Image.new("RGB", (0, 3)), DataError, r"^images\[1\]: expected pixels, got 0 x 3 of them$"),
        (Path(), DataError, r"^\.: a folder; expected an image file$"),
        (Sample("a", np.zeros((4, 4, 3))), DataError, r"^images\[1\]: .* got float64 \(4, 4, 3\)$"),
        (
            Sample("a", np.zeros((4, 4), np.uint8)),
            DataError,
            r"^images\[1\]: .* got uint8 \(4, 4\)$",
        ),
        (lambda: 3.5, TypeError, r"^images\[1\]: expected a path, .*, got float$"),
        (Image.new("F", (4, 4), 7.0), DataError, r"^images\[1\]: floating-point pixels from 7"),
    ],
)
def test_an_image_that_cannot_be_used_is_named_in_one_line(wrong, kind, says, checkpoint) -> None:
    images = [noise(4, 4), wrong, noise(4, 4)]
    for results in (
        lambda: checkpoint.segment(images),
        lambda: list(checkpoint.segment_stream(images, batch_size=1)),
    ):
        with pytest.raises(kind, match=says) as caught:
            results()
        assert "\n" not in str(caught.value)


def test_a_file_that_breaks_off_is_named(checkpoint: Checkpoint, tmp_path: Path) -> None:
    Image.fromarray(noise(64, 64)).save(tmp_path / "whole.png")
    (tmp_path / "half.png").write_bytes((tmp_path / "whole.png").read_bytes()[:900])
    with pytest.raises(DataError, match=r"half\.png: cannot be read"):
        checkpoint.segment([tmp_path / "half.png"])
    with pytest.raises(DataError, match=r"^images\[0\]: cannot be read"):
        checkpoint.segment(Image.open(tmp_path / "half.png"))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"batch_size": 0}, "^batch_size: expected a whole number from 1, got 0$"),
        ({"batch_size": True}, "^batch_size: "),
        ({"confidence": 2}, "^confidence: expected a number from 0 to 1, got 2$"),
        ({"confidence": "x"}, "^confidence: expected a number from 0 to 1, got 'x'$"),
        ({"min_score": -0.5}, "^min_score: expected a number from 0 to 1, got -0.5$"),
        ({"device": "abacus"}, "^device: 'abacus' cannot be used here"),
    ],
)
def test_wrong_options_are_refused_before_any_image(options, says, checkpoint) -> None:
    for call in (checkpoint.segment, checkpoint.segment_stream):
        with pytest.raises(ValueError, match=says):
            call([], **options)
    for wrong in (b"street.png", {"image": IMAGES[0]}, io.BytesIO(b"png")):
        with pytest.raises(TypeError, match=rf"^images: .* got {type(wrong).__name__}$"):
            checkpoint.segment(wrong)
    with pytest.raises(TypeError, match=r"^images: expected a path, .* got int$"):
        checkpoint.segment(3)


def test_pixels_of_low_confidence_are_void(checkpoint: Checkpoint, tmp_path: Path) -> None:
    whole = checkpoint.segment(noise(24, 40))
    some = checkpoint.segment(noise(24, 40), confidence=0.9)
    kept = some.semantic != VOID
    assert 0 < kept.mean() < 1
    np.testing.assert_array_equal(some.semantic[kept], whole.semantic[kept])
    assert not some.instance[~kept].any()
    assert {found.number for found in some.objects} <= {found.number for found in whole.objects}
    nothing = tiny_checkpoint(tmp_path).segment(noise(24, 40), confidence=1.0)
    assert (nothing.semantic == VOID).all() and not nothing.objects
    assert repr(nothing) == "Segmentation('image-000000', 24 x 40, void 100%; 0 objects)"


def test_objects_are_those_that_can_be_seen(checkpoint: Checkpoint) -> None:
    image = noise(24, 40)
    found = checkpoint.segment(image)
    assert len(found.objects) > 1
    for thing in found.objects:
        mask = found.instance == thing.number
        assert thing.area == mask.sum() > 0
        assert set(found.semantic[mask]) == {thing.label}
        assert CLASSES.names[thing.label] == thing.name and CLASSES.is_thing[thing.label]
        assert 0 < thing.score <= 1
    tiny = checkpoint.segment(image[:1, :2])
    assert sum(thing.area for thing in tiny.objects) <= 2


def test_objects_of_low_scores_are_left_out(checkpoint: Checkpoint) -> None:
    image = noise(24, 40)
    whole = checkpoint.segment(image)
    scores = sorted(found.score for found in whole.objects)
    bound = scores[len(scores) // 2]
    some = checkpoint.segment(image, min_score=bound)
    assert some.objects == tuple(found for found in whole.objects if found.score >= bound)
    assert 0 < len(some.objects) < len(whole.objects)
    left_out = {found.number for found in whole.objects} - {found.number for found in some.objects}
    for part in ("instance", "frame_instance"):
        before, after = getattr(whole, part), getattr(some, part)
        np.testing.assert_array_equal(after, np.where(np.isin(before, list(left_out)), 0, before))
    np.testing.assert_array_equal(some.semantic, whole.semantic)
    assert set(np.flatnonzero(some.labels != VOID) + 1) == set(np.unique(some.frame_instance)) - {0}
    assert not checkpoint.segment(image, min_score=1.0).objects


def test_a_repr_fits_on_a_line(checkpoint: Checkpoint) -> None:
    text = repr(checkpoint.segment(noise(480, 640)))
    assert text.startswith("Segmentation('image-000000', 480 x 640, ") and "%" in text
    assert len(text) < 200 and "array" not in text and "\n" not in text


def test_a_stream_reads_only_what_it_needs(checkpoint: Checkpoint) -> None:
    """An endless source: so images ahead of the network are few."""
    pulled = itertools.count()
    source = (noise(8 + next(pulled) % 3, 8) for _ in itertools.repeat(None))
    results = checkpoint.segment_stream(source, batch_size=2)
    first = [next(results) for _ in range(5)]
    results.close()
    assert [one.semantic.shape for one in first] == [(8, 8), (9, 8), (10, 8), (8, 8), (9, 8)]
    assert next(pulled) < 40


@pytest.mark.parametrize("kind", ["fit", "own", "squeeze"])
def test_images_of_any_shapes_come_back_in_order(checkpoint: Checkpoint, kind) -> None:
    """Frames of one shape go through the network together; each result is that of its image."""
    checkpoint = Checkpoint(checkpoint.network, CLASSES, (24, 32), kind)
    images = [noise(*SIZES[number * number % len(SIZES)]) for number in range(23)]
    alone = {image.shape: checkpoint.segment(image) for image in images}
    for batch_size in (1, 4, 64):
        found = list(checkpoint.segment_stream(images, batch_size=batch_size))
        assert [one.place for one in found] == list(range(23))
        for image, one in zip(images, found, strict=True):
            assert one.image is image
            assert_same(one, alone[image.shape])
    if kind != "squeeze":
        assert len({one.frame_semantic.shape for one in found}) > 2


def test_frames_of_one_shape_go_through_the_network_together(checkpoint: Checkpoint) -> None:
    pipeline = Pipeline(checkpoint.network, CLASSES, (32, 32), "own", batch_size=4)
    seen, network = [], pipeline.network

    def watched(images: torch.Tensor) -> Outputs:
        seen.append(tuple(images.shape))
        return network(images)

    pipeline.network = watched
    wide, high, large = (24, 40), (40, 24), (60, 70)
    shapes = [wide, high, wide, wide, high, wide, large, high, high, *[wide] * 6]
    found = list(pipeline.stream(noise(*shape) for shape in shapes))
    assert [one.semantic.shape for one in found] == shapes
    counts = sorted((batch, *size) for batch, _, *size in seen)
    assert counts == [(1, *large), (2, *wide), (4, *wide), (4, *wide), (4, *high)]


def test_no_image_waits_for_others_of_its_shape_for_long(checkpoint: Checkpoint) -> None:
    """An endless source whose first image has a shape of its own."""
    pulled = itertools.count()
    source = (noise(9 if next(pulled) else 30, 8) for _ in itertools.repeat(None))
    own = Checkpoint(checkpoint.network, CLASSES, (32, 32), "own")
    results = own.segment_stream(source, batch_size=4)
    assert next(results).semantic.shape == (30, 8)
    results.close()
    assert next(pulled) < 60


def test_where_the_masks_attend_is_given_when_asked_for(checkpoint: Checkpoint) -> None:
    images = [noise(24, 40)] * 5
    shown = [bool(r.attended) for r in checkpoint.segment_stream(images, batch_size=2, attended=3)]
    assert shown == [True, True, True, False, False]
    (one,) = checkpoint.segment(images[:1], attended=True)
    masks = [scale.mask for scale in one.attended.values()]
    assert masks and all(mask.dtype == bool and 0 < mask.mean() < 1 for mask in masks)
    assert not checkpoint.segment(images[0]).attended
