# SPDX-License-Identifier: BSD-3-Clause
"""How sure a network is of an image, and the mean with the mirrored image."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from segmentation_runs import CLASSES, measure_quickly, tiny_checkpoint, write_images

from maskattn_kernels.segmentation.data.frame import whole_frame
from maskattn_kernels.segmentation.data.sample import Sample
from maskattn_kernels.segmentation.model.measures import STATISTICS, measure
from maskattn_kernels.segmentation.model.mirrored import Mirrored, with_tta
from maskattn_kernels.segmentation.model.network import Outputs, SegmentationNetwork
from maskattn_kernels.segmentation.prediction import command as prediction
from maskattn_kernels.segmentation.scoring import command as scoring


def noise(count: int, height: int = 32, width: int = 32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8, generator=generator)


@pytest.fixture(scope="module")
def network() -> SegmentationNetwork:
    torch.manual_seed(1)
    made = SegmentationNetwork(3, [2], width=4, depth=2, selector="none").eval()
    with torch.no_grad():
        made.unet.head.weight.mul_(20)
    return made


def test_measures_are_those_of_their_definitions(network: SegmentationNetwork) -> None:
    images = noise(2, 9, 14)
    with torch.inference_mode():
        outputs = network(images)
        found = measure(images, outputs)
    for image, logits, entropy, statistics in zip(
        images.double().numpy(), outputs.semantic.double().numpy(), *found[:2], strict=True
    ):
        powers = np.exp(logits - logits.max(0))
        shares = powers / powers.sum(0)
        expected = -(shares * np.log(shares)).sum(0)
        np.testing.assert_allclose(entropy, expected, rtol=1e-4, atol=1e-6)
        grey = 0.299 * image[0] + 0.587 * image[1] + 0.114 * image[2]
        second = [np.abs(np.diff(grey, n=2, axis=axis)).mean() for axis in (0, 1)]
        means = {
            "entropy": expected.mean(),
            "logit": logits.max(0).mean(),
            "brightness": grey.mean(),
            "contrast": grey.std(),
            "sharpness": sum(second),
            "saturation": (image.max(0) - image.min(0)).mean(),
        }
        assert tuple(means) == STATISTICS
        np.testing.assert_allclose(statistics, list(means.values()), rtol=1e-4)
    deepest = network.unet.features((images / 255 - network.mean) / network.std)[0][0]
    torch.testing.assert_close(found.pooled, deepest.mean((2, 3)).detach())


def test_entropy_of_sure_and_of_undecided_pixels() -> None:
    logits = torch.tensor([[0.0, 200.0], [0.0, -200.0]]).view(1, 2, 1, 2)
    outputs = Outputs(logits, None, None, None, {}, torch.zeros(1, 4))
    images = torch.zeros(1, 3, 1, 2, dtype=torch.uint8)  # too small for a second difference
    found = measure(images, outputs)
    torch.testing.assert_close(found.entropy, torch.tensor([[[math.log(2), 0.0]]]))
    assert found.statistics[0, 2:].tolist() == [0, 0, 0, 0]
    with pytest.raises(ValueError, match="no pooled map"):
        measure(images, outputs._replace(pooled=None))


def test_segmentations_carry_their_measures_when_asked(tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "checkpoint", selector="none")
    sharp = noise(1, 40, 60)[0].permute(1, 2, 0).numpy()
    blurred = np.asarray(Image.fromarray(sharp).filter(ImageFilter.GaussianBlur(3)))
    images = [sharp, blurred, sharp // 4]
    assert not any(found.measured.statistics for found in checkpoint.segment(images))
    one, soft, dark = checkpoint.segment(images, measured=True, batch_size=2)
    frame = whole_frame(Sample("", sharp), (32, 32), "fit")
    pixels = torch.from_numpy(frame.image.transpose(2, 0, 1).copy())[None]
    with torch.inference_mode():
        expected = measure(pixels, checkpoint.network(pixels))
    np.testing.assert_allclose(one.measured.entropy, expected.entropy[0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(one.measured.pooled, expected.pooled[0], rtol=1e-3, atol=1e-4)
    assert list(one.measured.statistics) == list(STATISTICS)
    for name, value in zip(STATISTICS, expected.statistics[0].tolist(), strict=True):
        assert one.measured.statistics[name] == pytest.approx(value, rel=1e-4)
    assert soft.measured.statistics["sharpness"] < 0.5 * one.measured.statistics["sharpness"]
    assert dark.measured.statistics["brightness"] < 0.3 * one.measured.statistics["brightness"]
    assert one.measured.entropy.base is None and one.measured.pooled.base is None


def test_a_mirrored_network_gives_the_mean(network: SegmentationNetwork) -> None:
    image = noise(2, 24, 32)
    with torch.inference_mode():
        plain, mirror = network(image), network(image.flip(-1))
        found = Mirrored(network)(image)
    mean = (plain.semantic.softmax(1) + mirror.semantic.flip(-1).softmax(1)) / 2
    torch.testing.assert_close(found.semantic.softmax(1), mean)
    torch.testing.assert_close(found.center, (plain.center + mirror.center.flip(-1)) / 2)
    torch.testing.assert_close(
        found.offset[:, 0], (plain.offset + mirror.offset.flip(-1))[:, 0] / 2
    )
    torch.testing.assert_close(
        found.offset[:, 1], (plain.offset - mirror.offset.flip(-1))[:, 1] / 2
    )
    assert (plain.semantic.argmax(1) != found.semantic.argmax(1)).any()
    # The others are those of the image as it is: a new output needs a rule in Mirrored, or is one.
    as_they_are = {"embedding", "selections", "pooled", "coarse", "finest"}
    assert {*Outputs._fields} == {"semantic", "center", "offset", "distance"} | as_they_are


def test_logits_that_agree_are_kept(network: SegmentationNetwork) -> None:
    """So that the highest logit and the entropy mean the same with a mirrored network."""
    half = noise(1, 16, 16)
    image = torch.cat([half, half.flip(-1)], dim=-1)

    class Symmetric(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> Outputs:
            outputs = network(x)
            return outputs._replace(semantic=(outputs.semantic + outputs.semantic.flip(-1)) / 2)

    with torch.inference_mode():
        expected, found = Symmetric()(image), Mirrored(Symmetric())(image)
    torch.testing.assert_close(found.semantic, expected.semantic)


def test_objects_are_found_at_the_same_places_in_a_mirrored_scene() -> None:
    """A centre and offsets that point to it agree with themselves, but for the sign along rows."""

    class OneObject(torch.nn.Module):
        """Says of every image that its object is where the brightest pixel is."""

        def forward(self, image: torch.Tensor) -> Outputs:
            batch, _, height, width = image.shape
            place = image.sum(1).flatten(1).argmax(1)
            center = torch.zeros(batch, height * width).scatter_(1, place[:, None], 1.0)
            rows, columns = torch.arange(height).view(-1, 1), torch.arange(width)
            dy = (place // width).view(-1, 1, 1) - rows.expand(height, width)
            dx = (place % width).view(-1, 1, 1) - columns.expand(height, width)
            offset = torch.stack([dy, dx], 1).float()
            logits = torch.zeros(batch, 3, height, width)
            return Outputs(logits, center.view(batch, 1, height, width), offset, None, {}, None)

    image = noise(3, 8, 11)
    expected, found = OneObject()(image), Mirrored(OneObject())(image)
    torch.testing.assert_close(found.center, expected.center)
    torch.testing.assert_close(found.offset, expected.offset)


def test_unknown_augmentations_are_refused(network: SegmentationNetwork, tmp_path: Path) -> None:
    assert with_tta(network, None) is network
    checkpoint = tiny_checkpoint(tmp_path / "checkpoint")
    with pytest.raises(ValueError, match=r"^tta: expected None or .flip., got"):
        checkpoint.segment(np.zeros((8, 8, 3), np.uint8), tta="scales")


class Labelled:
    """Images of noise, and a label."""

    classes = CLASSES

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> Sample:
        image = noise(3, 24, 40)[index].permute(1, 2, 0).numpy()
        return Sample(f"{index:02d}", image, np.full((24, 40), index, np.uint8))


def test_predict_segment_and_evaluate_take_the_augmentation(tmp_path: Path, monkeypatch) -> None:
    measure_quickly(monkeypatch)
    checkpoint = tiny_checkpoint(tmp_path / "checkpoint", selector="none")
    with torch.no_grad():
        checkpoint.network.unet.head.weight.mul_(20)
    checkpoint.save_pretrained(tmp_path / "checkpoint")
    images = write_images(tmp_path / "images", 3)
    words = [str(images), "--checkpoint", str(tmp_path / "checkpoint"), "--panels", "0"]
    plain, flip = tmp_path / "plain", tmp_path / "flip"
    assert prediction.main([*words, "--out", str(plain)]) == 0
    assert prediction.main([*words, "--out", str(flip), "--tta", "flip"]) == 0
    summaries = [json.loads((out / "summary.json").read_text()) for out in (plain, flip)]
    assert [summary["tta"] for summary in summaries] == [None, "flip"]
    gflops = [summary["network"]["gflops"] for summary in summaries]
    assert gflops[1] == pytest.approx(2 * gflops[0])
    file = images / "01.png"
    found = [checkpoint.segment(file, tta=tta).semantic for tta in (None, "flip")]
    assert (found[0] != found[1]).any()
    for semantic, out in zip(found, (plain, flip), strict=True):
        labels = np.asarray(Image.open(out / "labels" / "01.png"))
        np.testing.assert_array_equal(labels, CLASSES.to_ids(semantic))
    scores = [
        scoring.evaluate(checkpoint, Labelled(), tta=tta)["original size"]["mean"]["mIoU"]
        for tta in (None, "flip")
    ]
    assert scores[0] != scores[1]
