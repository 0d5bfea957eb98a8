# SPDX-License-Identifier: BSD-3-Clause
"""Tiles: they cover an image, and the blend of their outputs is what the whole would give."""

import math

import numpy as np
import pytest
import torch
from segmentation_runs import CLASSES, tiny_checkpoint
from torch import Tensor

from maskattn_kernels.segmentation.checkpoints import Checkpoint
from maskattn_kernels.segmentation.data.errors import DataError
from maskattn_kernels.segmentation.infer import Pipeline
from maskattn_kernels.segmentation.model import tiles as tiles_module
from maskattn_kernels.segmentation.model.grouping import group
from maskattn_kernels.segmentation.model.network import Outputs
from maskattn_kernels.segmentation.model.tiles import Blend, TilePlan
from maskattn_kernels.segmentation.tiling import Tiling, least_sure, through_tiles

IMAGES = [(40, 60), (33, 32), (100, 33), (32, 32), (64, 57), (5, 90), (97, 131)]
OVERLAPS = [0.0, 0.25, 0.5, 0.9]


def outputs_of(pixels: Tensor) -> Outputs:
    """Of each pixel alone, so the same wherever a tile begins: offsets and centres too.

    Red is the row and green the column, so that no two centres have one height.
    """
    row, column, noise = pixels.float().unbind(1)
    semantic = [noise - 60, 128 - noise, row - 40, 90 - column, 0 * row + 30, column - row]
    waves = (row * math.pi / 12).sin().square() * (column * math.pi / 15).sin().square()
    center = waves * (0.5 + row / 400 + column / 900)
    offset = torch.stack([10 * (noise / 40).sin(), row / 20 - 3], dim=1)
    pooled = pixels.float().mean((2, 3))
    return Outputs(torch.stack(semantic, 1) / 30, center.unsqueeze(1), offset, None, {}, pooled)


def image_of(height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(height * width)
    rows, columns = np.indices((height, width))
    noise = torch.randint(0, 256, (height, width), generator=generator)
    return torch.stack([torch.from_numpy(rows), torch.from_numpy(columns), noise]).to(torch.uint8)


@pytest.mark.parametrize("image", IMAGES)
@pytest.mark.parametrize("overlap", OVERLAPS)
def test_tiles_cover_the_image_and_overlap(image, overlap) -> None:
    plan = TilePlan(image, (32, 24), overlap, classes=6)
    height, width = min(32, image[0]), min(24, image[1])
    covered = torch.zeros(image)
    for top, left in plan.places:
        assert 0 <= top <= image[0] - height and 0 <= left <= image[1] - width
        covered[top : top + height, left : left + width] += 1
    assert covered.min() >= 1 and len(plan.places) == plan.count
    for starts, tile in ((plan.rows.starts, height), (plan.columns.starts, width)):
        steps = np.diff(starts)
        assert (steps >= 1).all() and (steps <= math.ceil(max(1, tile * (1 - overlap)))).all()
    fewer = TilePlan(image, (32, 24), 0.0, classes=6).count
    assert plan.count >= fewer == math.ceil(image[0] / height) * math.ceil(image[1] / width)


@pytest.mark.parametrize("image", IMAGES)
@pytest.mark.parametrize("overlap", OVERLAPS)
def test_the_blend_of_all_tiles_is_the_whole(image, overlap) -> None:
    pixels = image_of(*image)
    plan = TilePlan(image, (32, 24), overlap, classes=6)
    whole = outputs_of(pixels[None])
    found = through_tiles(outputs_of, pixels, plan, range(plan.count), together=3)
    for name in ("semantic", "center", "offset"):
        torch.testing.assert_close(getattr(found, name), getattr(whole, name))
    expected = group(whole, [3, 4, 5])
    got = group(found, [3, 4, 5])
    assert (got.semantic == expected.semantic).float().mean() > 0.999
    assert (got.instance == expected.instance).float().mean() > 0.999
    assert torch.equal(got.labels, expected.labels) and len(got.labels[0]) > 0


def test_every_output_has_a_rule() -> None:
    """A new output of networks needs one: blended by `Blend`, or in this list."""
    blended = {*tiles_module._MAPS}
    left_out = {"embedding", "selections", "coarse", "finest"}
    assert {*Outputs._fields} == blended | left_out | {"pooled"}


@pytest.mark.parametrize("image", IMAGES)
def test_weights_add_up_to_one_and_are_low_at_borders(image) -> None:
    plan = TilePlan(image, (32, 24), 0.25, classes=2)
    for side, length in ((plan.rows, image[0]), (plan.columns, image[1])):
        total = torch.zeros(length)
        for where, weight in zip(side.cells, side.weights, strict=True):
            total[where] += weight
            middle = len(weight) // 2
            inner_first, inner_last = where.start > 0, where.stop < length
            assert not inner_first or weight[0] < 0.2 < weight[middle]
            assert not inner_last or weight[-1] < 0.2 < weight[middle]
        torch.testing.assert_close(total, torch.ones(length))


@pytest.mark.parametrize("most", [1, 700, 3000, 20000])
def test_large_images_are_blended_on_a_coarser_grid(most, monkeypatch) -> None:
    """Of smooth outputs the grid is a resized whole, with offsets in its own cells."""
    monkeypatch.setattr(tiles_module, "_MOST_LOGITS", most)
    ys, xs = torch.meshgrid(torch.arange(97.0), torch.arange(131.0), indexing="ij")
    pixels = torch.stack([ys, xs, ys + xs])
    plan = TilePlan((97, 131), (40, 48), 0.25, classes=6)

    def with_distance(tiles: Tensor) -> Outputs:
        outputs = outputs_of(tiles)
        return outputs._replace(distance=1 - outputs.center)

    found = through_tiles(with_distance, pixels, plan, range(plan.count), together=2)
    assert found.semantic.shape == (1, 6, *plan.grid)
    assert plan.grid[0] * plan.grid[1] * 6 <= max(most, 6)
    rows = (torch.arange(plan.grid[0]) + 0.5) * (97 / plan.grid[0]) - 0.5
    columns = (torch.arange(plan.grid[1]) + 0.5) * (131 / plan.grid[1]) - 0.5
    grid = torch.stack(torch.meshgrid(rows, columns, indexing="ij"))
    expected = outputs_of(torch.cat([grid, grid.sum(0, keepdim=True)])[None])
    torch.testing.assert_close(found.semantic, expected.semantic, atol=1e-3, rtol=1e-3)
    ratio = torch.tensor([plan.grid[0] / 97, plan.grid[1] / 131]).view(1, 2, 1, 1)
    torch.testing.assert_close(found.offset, expected.offset * ratio, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(found.distance, 1 - found.center)


def test_the_whole_counts_alone_where_no_tile_is_computed_and_half_elsewhere() -> None:
    pixels = image_of(97, 131)
    plan = TilePlan((97, 131), (40, 48), 0.25, classes=6)
    empty = torch.zeros(1, 6, 20, 30)
    zeros = Outputs(empty, empty[:, :1], torch.ones(1, 2, 20, 30), None, {})
    none = Blend(plan).outputs(zeros)
    torch.testing.assert_close(none.semantic, torch.zeros(1, 6, 97, 131))
    ratio = torch.tensor([97 / 20, 131 / 30]).view(1, 2, 1, 1)
    assert torch.equal(none.offset, ratio.expand(1, 2, 97, 131))
    everything = through_tiles(outputs_of, pixels, plan, range(plan.count), 4, zeros)
    alone = through_tiles(outputs_of, pixels, plan, range(plan.count), 4)
    torch.testing.assert_close(everything.semantic, alone.semantic / 2)
    torch.testing.assert_close(everything.center, alone.center)
    torch.testing.assert_close(everything.offset, alone.offset)
    one = through_tiles(outputs_of, pixels, plan, [0], 4, zeros)
    corner = (slice(None), slice(None), slice(0, 20), slice(0, 20))
    torch.testing.assert_close(one.semantic[corner], alone.semantic[corner] / 2)
    assert not one.semantic[..., 41:, :].any() and not one.semantic[..., 49:].any()


def test_a_tile_without_neighbours_counts_in_full_but_near_its_border() -> None:
    plan = TilePlan((36, 48), (20, 26), 0.5, classes=6)  # most places are in two tiles or four
    pixels = image_of(36, 48)
    zeros = Outputs(torch.zeros(1, 6, 9, 12), None, None, None, {})
    found = through_tiles(outputs_of, pixels, plan, [0], 1, zeros).semantic
    expected = outputs_of(pixels[None]).semantic / 2
    inner = (..., slice(0, 15), slice(0, 20))
    torch.testing.assert_close(found[inner], expected[inner])
    assert not found[..., 20:, :].any() and not found[..., 26:].any()
    share = (found / expected)[0, 4, 10]  # class 4 is the same everywhere
    assert (share[:26].diff() <= 1e-6).all() and share[25] < 0.2


def test_the_least_sure_tiles_are_those_of_high_entropy() -> None:
    plan = TilePlan((90, 90), (30, 30), 0.0, classes=2)
    logits = torch.zeros(1, 2, 9, 9)
    logits[:, 0] = 9.0
    logits[:, 0, 3:6, 6:9] = 0.0  # tile 5
    logits[:, 0, 6:9, 0:3] = 1.5  # tile 6
    assert plan.count == 9
    assert [least_sure(plan, logits, share) for share in (0, 0.05, 0.1, 0.2)] == [
        [],
        [],
        [5],
        [5, 6],
    ]
    assert least_sure(plan, logits, 1) == list(range(9))
    assert len(least_sure(plan, logits, 0.5)) == 5


def test_tiles_are_chosen_for_what_others_leave() -> None:
    """Of two that see the same place only one is needed."""
    plan = TilePlan((36, 84), (36, 36), 0.5, classes=2)  # tiles from 0, 16, 32, 48
    worth = torch.zeros(36, 84)
    worth[:, 16:36] = 1.0  # tiles 0, 1 and 2 see most of it
    worth[:, 60:70] = 0.5  # tile 3 sees it alone
    assert plan.places == [(0, 0), (0, 16), (0, 32), (0, 48)]
    assert plan.covering(worth, 1) == [1]
    assert plan.covering(worth, 2) == [1, 3]
    assert plan.covering(worth, 0) == [] and plan.covering(worth, 4) == [0, 1, 2, 3]
    assert plan.covering(torch.zeros(3, 7), 2) == [0, 1]  # nothing is worth it


@pytest.mark.parametrize("seed", range(5))
def test_each_tile_is_the_best_for_what_is_left(seed: int) -> None:
    """Against counting all tiles anew at every step."""
    plan = TilePlan((97, 131), (40, 48), 0.4, classes=6)
    worth = torch.rand(97, 131, generator=torch.Generator().manual_seed(seed)).square()
    weights = torch.zeros(plan.count, 97, 131)
    for tile in range(plan.count):
        row, column = divmod(tile, len(plan.columns.starts))
        where = (tile, plan.rows.cells[row], plan.columns.cells[column])
        weights[where] = plan.rows.weights[row][:, None] * plan.columns.weights[column]

    def seen(tiles: list[int]) -> float:
        return float(((weights[tiles].sum(0) / 0.1).clamp_max(1) * worth).double().sum())

    taken: list[int] = []
    for count in range(1, plan.count):
        others = [tile for tile in range(plan.count) if tile not in taken]
        taken.append(max(others, key=lambda tile: seen([*taken, tile])))
        assert plan.covering(worth, count) == sorted(taken)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Checkpoint:
    made = tiny_checkpoint(tmp_path_factory.mktemp("checkpoint"))
    with torch.no_grad():
        made.network.unet.head.weight.mul_(20)
        made.network.objects[-1].bias[0] = 1.0  # centres everywhere
    return made


def noise(height: int, width: int) -> np.ndarray:
    return image_of(height, width).permute(1, 2, 0).numpy().copy()


def test_segment_in_tiles(checkpoint: Checkpoint) -> None:
    images = [noise(*size) for size in ((40, 60), (33, 80), (40, 60), (32, 24), (97, 31))]
    for options in ({"tiles": (32, 24)}, {"tiles": 24, "hybrid": 0.5}, {"hybrid": 0.25}):
        if "tiles" not in options or options["tiles"] == 24:
            images = images[:3]
        few = checkpoint.segment(images, **options)
        many = list(checkpoint.segment_stream(images, batch_size=2, **options))
        for image, one, other in zip(images, few, many, strict=True):
            assert one.semantic.shape == image.shape[:2]
            np.testing.assert_array_equal(one.semantic, other.semantic)
            np.testing.assert_array_equal(one.instance, other.instance)
            np.testing.assert_array_equal(one.frame.image, image)
            np.testing.assert_array_equal(one.frame_semantic, one.semantic)
            assert one.work.seconds > 0 and 0 < one.work.tiles <= one.work.of
            assert ("hybrid" in options) == (one.work.tiles < one.work.of) or one.work.of < 3
            for thing in one.objects:
                mask = one.instance == thing.number
                assert set(one.semantic[mask]) == {thing.label}
                assert thing.label in CLASSES.things


def test_an_image_as_large_as_a_tile_is_what_the_network_says_of_it(checkpoint) -> None:
    own = Checkpoint(checkpoint.network, CLASSES, 32, "own")
    image = noise(24, 40)
    whole, tiled = own.segment(image), own.segment(image, tiles=(24, 40))
    np.testing.assert_array_equal(whole.semantic, tiled.semantic)
    np.testing.assert_array_equal(whole.instance, tiled.instance)
    assert (tiled.work.tiles, tiled.work.of, whole.work.of) == (1, 1, 0)


def test_a_hybrid_of_nothing_is_the_first_look(checkpoint) -> None:
    image = noise(64, 96)
    low = checkpoint.segment(image)
    nothing = checkpoint.segment(image, hybrid=0.0)
    assert nothing.work.tiles == 0 and nothing.work.of > 1
    same = nothing.semantic == low.semantic
    assert same[np.isin(low.semantic, [0, 1]) & np.isin(nothing.semantic, [0, 1])].mean() > 0.999
    everything = checkpoint.segment(image, hybrid=1.0)
    assert everything.work.tiles == everything.work.of


def test_a_network_that_sees_pixels_alone_gives_the_same_in_tiles() -> None:
    """Through the pipeline: images, objects, confidence, measures."""
    image = noise(70, 90)
    made = tiny_checkpoint_of_pixels()
    results = []
    for tiling in (None, Tiling(32), Tiling((24, 40), 0.6)):
        pipeline = Pipeline(
            made.network, CLASSES, (32, 32), "own", tiling=tiling, confidence=0.4, measured=True
        )
        pipeline.network = of_three
        results.append(pipeline.batch([image])[0])
    whole, *tiled = results
    for found in tiled:
        assert (found.semantic == whole.semantic).mean() > 0.9999
        assert (found.instance == whole.instance).mean() > 0.999
        np.testing.assert_allclose(found.scores, whole.scores, rtol=1e-3)
        np.testing.assert_allclose(found.measured.entropy, whole.measured.entropy, atol=1e-4)
        assert found.measured.statistics == pytest.approx(whole.measured.statistics, rel=1e-4)


def of_three(pixels: Tensor) -> Outputs:
    outputs = outputs_of(pixels)
    return outputs._replace(semantic=outputs.semantic[:, 1:4])


def tiny_checkpoint_of_pixels() -> Checkpoint:
    from maskattn_kernels.segmentation.model.network import SegmentationNetwork

    network = SegmentationNetwork(len(CLASSES), CLASSES.things, width=4, depth=1)
    return Checkpoint(network, CLASSES, 32, "own")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (
            {"tiles": 0},
            r"^tiles: expected a whole number from 1 to 16384, or height and width, got 0",
        ),
        ({"tiles": (32,)}, r"^tiles: expected a whole number"),
        ({"tiles": 4096}, r"^tiles: expected at most 4 million pixels in a tile, got 4096 x 4096$"),
        ({"tiles": 32, "overlap": 1.0}, r"^overlap: expected a number from 0 to 0\.9, got 1\.0$"),
        ({"tiles": 32, "overlap": "x"}, r"^overlap: expected a number from 0 to 0\.9, got 'x'$"),
        ({"hybrid": 1.5}, r"^hybrid: expected a number from 0 to 1, got 1\.5$"),
        ({"hybrid": -0.1}, r"^hybrid: expected a number from 0 to 1, got -0\.1$"),
    ],
)
def test_wrong_tiles_are_one_line(options, says, checkpoint) -> None:
    for call in (checkpoint.segment, checkpoint.segment_stream):
        with pytest.raises(ValueError, match=says):
            call([], **options)


def test_tiles_larger_than_the_image_are_told(checkpoint) -> None:
    says = r"^image-000000: 60 x 40 pixels, which lie within one tile of 64 x 64; choose smaller "
    with pytest.raises(DataError, match=says):
        checkpoint.segment(noise(40, 60), tiles=64)
    assert checkpoint.segment(noise(40, 90), tiles=64).work.of == 2, "one side may be shorter"
    failed: list[DataError] = []
    images = [noise(40, 60), noise(64, 64), noise(1, 1)]
    found = list(checkpoint.segment_stream(images, tiles=64, failed=failed.append))
    assert [one.place for one in found] == [1] and len(failed) == 2
