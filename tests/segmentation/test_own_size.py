# SPDX-License-Identifier: BSD-3-Clause
"""From a network's size to an image's own: interpolated classes, objects that agree with them."""

import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from maskattn_kernels.segmentation.data.sample import VOID
from maskattn_kernels.segmentation.model import own_size
from maskattn_kernels.segmentation.model.grouping import Panoptic, group
from maskattn_kernels.segmentation.model.network import Outputs
from maskattn_kernels.segmentation.model.own_size import at_size, classes_at

SIZES = [(24, 40), (7, 9), (64, 64), (1, 1), (1, 50), (50, 1), (13, 17), (200, 3)]


def logits(classes: int = 5, height: int = 13, width: int = 17) -> Tensor:
    return torch.randn(classes, height, width, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("strip", [1, 500, 1 << 22])
def test_classes_are_those_of_the_interpolated_logits(size, strip, monkeypatch) -> None:
    monkeypatch.setattr(own_size, "_STRIP", strip)
    given = logits()
    whole = F.interpolate(given[None].double(), size=size, mode="bilinear", align_corners=False)[0]
    best, second = whole.topk(2, dim=0).values
    clear = best - second > 1e-4  # where float32 cannot decide otherwise
    found = classes_at(given, size)
    assert found.shape == size and found.dtype == torch.uint8 and clear.float().mean() > 0.99
    assert torch.equal(found[clear].long(), whole.argmax(0)[clear])


def test_unsure_pixels_are_void() -> None:
    given, size = logits(), (30, 40)
    whole = F.interpolate(given[None], size=size, mode="bilinear", align_corners=False)[0]
    probability = whole.softmax(0).amax(0)
    found = classes_at(given, size, confidence=0.5)
    clear = (probability - 0.5).abs() > 1e-5
    assert 0 < (found == VOID).float().mean() < 1
    assert torch.equal((found == VOID)[clear], (probability < 0.5)[clear])


def scene(seed: int, classes: int = 4) -> tuple[Tensor, Panoptic]:
    """Noise in which things (classes 2 and 3) have objects."""
    generator = torch.Generator().manual_seed(seed)
    semantic = F.interpolate(torch.randn(1, classes, 5, 6, generator=generator), (19, 23)) * 4
    semantic += torch.randn(1, classes, 19, 23, generator=generator)
    center = torch.rand(1, 1, 19, 23, generator=generator)
    offset = torch.randn(1, 2, 19, 23, generator=generator) * 3
    return semantic[0], group(Outputs(semantic, center, offset, None, {}), [2, 3])


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("confidence", [0.0, 0.6])
def test_objects_and_classes_agree(size, confidence) -> None:
    """A pixel of an object has its class, and a pixel of a thing has an object."""
    for seed in range(5):
        given, found = scene(seed)
        assert len(found.labels[0]) > 3
        semantic, instance = at_size(given, found, size, [2, 3], confidence)
        assert (semantic.dtype, instance.dtype) == (torch.uint8, torch.int32)
        assert semantic.shape == instance.shape == size
        has = instance > 0
        assert torch.equal(semantic[has].long(), found.labels[0][instance[has].long() - 1])
        assert torch.equal(has, (semantic == 2) | (semantic == 3))
        known = semantic != VOID
        assert known.all() or confidence > 0
        plain = classes_at(given, size, confidence)
        assert torch.equal(plain == VOID, ~known)
        stuff = plain < 2
        assert torch.equal(semantic[stuff], plain[stuff]), "stuff is what the logits say"


def test_at_the_size_of_the_network_nothing_changes() -> None:
    given, found = scene(0)
    semantic, instance = at_size(given, found, (19, 23), [2, 3])
    assert torch.equal(semantic.long(), found.semantic[0])
    assert torch.equal(instance.long(), found.instance[0])
    unsure, _ = at_size(given, found, (19, 23), [2, 3], confidence=1e-9)
    assert torch.equal(unsure, semantic), "the general way gives the same"


def test_outlines_of_objects_are_smooth() -> None:
    """A disc at an eighth of its size: interpolated classes come nearer to it than blocks."""
    ys, xs = np.indices((128, 128))
    disc = torch.from_numpy(((ys - 63.5) ** 2 + (xs - 63.5) ** 2 < 50**2).astype(np.float32))
    inside = F.interpolate(disc[None, None], size=(16, 16), mode="area") * 8 - 4
    semantic = torch.cat([-inside, inside], dim=1)
    center = torch.zeros(1, 1, 16, 16)
    center[0, 0, 8, 8] = 1.0
    found = group(Outputs(semantic, center, torch.zeros(1, 2, 16, 16), None, {}), [1])
    _, instance = at_size(semantic[0], found, (128, 128), [1])
    blocks = F.interpolate(found.instance[None].float(), size=(128, 128))[0, 0]
    wrong, wrong_blocks = ((mask > 0) != (disc > 0) for mask in (instance, blocks))
    assert wrong.sum() < 0.4 * wrong_blocks.sum()


def test_without_centres_things_have_no_objects() -> None:
    given, found = scene(0)
    none = found._replace(instance=found.instance * 0, labels=found.labels[:, :0])
    semantic, instance = at_size(given, none, (40, 40), [2, 3])
    assert not instance.any() and torch.equal(semantic, classes_at(given, (40, 40)))


MEMORY = """
import resource, torch
from maskattn_kernels.segmentation.model.own_size import classes_at
logits = torch.randn(150, 96, 128)
classes_at(logits, (10, 10))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
assert classes_at(logits, (3000, 4000)).shape == (3000, 4000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_many_classes_of_a_large_image_take_little_memory() -> None:
    """150 classes at 4000 x 3000 would be 7.2 GB of logits."""
    done = subprocess.run(
        [sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True, timeout=300
    )
    assert int(done.stdout) * 1024 < 200e6
