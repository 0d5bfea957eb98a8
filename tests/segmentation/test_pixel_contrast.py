# SPDX-License-Identifier: BSD-3-Clause
"""PixelContrastiveLoss against loops over pixels; its sample; images that have nothing to say."""

import pytest
import torch
from safetensors.torch import load_file
from segmentation_runs import tiny_arguments

from maskattn_kernels.segmentation.data.sample import VOID
from maskattn_kernels.segmentation.model.losses import SegmentationLoss
from maskattn_kernels.segmentation.model.network import SegmentationNetwork
from maskattn_kernels.segmentation.model.pixel_contrast import PixelContrastiveLoss, PixelEmbedding
from maskattn_kernels.segmentation.training import command as training


def scene(batch: int = 3, side: int = 6, classes: int = 4) -> tuple[torch.Tensor, ...]:
    """(embedding, logits, semantic) with void pixels; every pixel fits into the sample."""
    torch.manual_seed(0)
    semantic = torch.randint(classes, (batch, side, side))
    semantic[torch.rand(semantic.shape) < 0.2] = VOID
    embedding = torch.randn(batch, 5, side, side, dtype=torch.float64)
    return embedding, torch.randn(batch, classes, side, side), semantic


def by_loops(embedding: torch.Tensor, semantic: torch.Tensor, temperature: float) -> torch.Tensor:
    """The formula, one pair of pixels at a time."""
    of_images = []
    for points, labels in zip(embedding.flatten(2).mT, semantic.flatten(1), strict=True):
        points = [point / point.norm() for point in points]
        pixels = [i for i in range(len(labels)) if labels[i] != VOID]
        anchors = []
        for a in pixels:
            others = [points[a] @ points[n] for n in pixels if labels[n] != labels[a]]
            total = sum((score / temperature).exp() for score in others)
            own = [points[a] @ points[p] for p in pixels if labels[p] == labels[a] and p != a]
            own = [(score / temperature).exp() for score in own]
            if own:
                anchors.append(sum(-(x / (x + total)).log() for x in own) / len(own))
        of_images.append(sum(anchors) / len(anchors) if anchors else points[0].sum() * 0)
    return torch.stack(of_images).mean()


def test_equals_loops_over_pixels():
    embedding, logits, semantic = scene()
    embedding.requires_grad_()
    loss = PixelContrastiveLoss(temperature=0.3)(embedding, logits, semantic)
    expected = by_loops(embedding, semantic, 0.3)
    torch.testing.assert_close(loss, expected)
    got, want = (torch.autograd.grad(each, embedding)[0] for each in (loss, expected))
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("only", [VOID, 2])
def test_nothing_to_compare_is_no_loss_and_no_gradient(only):
    embedding, logits, semantic = scene()
    embedding.requires_grad_()
    loss = PixelContrastiveLoss()(embedding, logits, torch.full_like(semantic, only))
    assert loss == 0
    loss.backward()
    assert (embedding.grad == 0).all()


def test_a_single_pixel_of_each_class_has_nothing_to_be_near_to():
    semantic = torch.tensor([[[0, 1, 2, VOID]]])
    embedding = torch.randn(1, 3, 1, 4, requires_grad=True)
    loss = PixelContrastiveLoss()(embedding, torch.zeros(1, 3, 1, 4), semantic)
    assert loss == 0
    loss.backward()
    assert (embedding.grad == 0).all()


def test_void_pixels_do_not_matter():
    embedding, logits, semantic = scene()
    loss = PixelContrastiveLoss()
    void = (semantic == VOID).unsqueeze(1)
    assert loss(embedding.masked_fill(void, 7.0), logits, semantic) == loss(
        embedding, logits, semantic
    )


def test_halves_of_a_batch_average_to_the_whole():
    """So that processes that share a batch learn as one."""
    embedding, logits, semantic = scene(batch=4)
    semantic[1] = VOID
    loss = PixelContrastiveLoss(samples=8)
    halves = [loss(embedding[i : i + 2], logits[i : i + 2], semantic[i : i + 2]) for i in (0, 2)]
    torch.testing.assert_close(sum(halves) / 2, loss(embedding, logits, semantic))


def test_finite_for_close_and_for_zero_embeddings():
    _, logits, semantic = scene()
    for embedding in (torch.zeros(3, 5, 6, 6), torch.full((3, 5, 6, 6), 1e-20)):
        embedding.requires_grad_()
        loss = PixelContrastiveLoss(temperature=1e-3)(embedding, logits, semantic)
        loss.backward()
        assert loss.isfinite() and embedding.grad.isfinite().all()


def test_labels_at_another_size_are_those_of_the_middle():
    """Each place covers 4 x 4 pixels: the pixel in row 2 and column 2 of them."""
    embedding, logits, semantic = scene()
    fine = torch.full((3, 24, 24), VOID)
    fine[:, 2::4, 2::4] = semantic
    loss = PixelContrastiveLoss()
    logits_fine = logits.repeat_interleave(4, 2).repeat_interleave(4, 3)
    assert loss(embedding, logits_fine, fine) == loss(embedding, logits, semantic)


def sampled(labels: torch.Tensor, wrong: torch.Tensor, samples: int) -> torch.Tensor:
    places = PixelContrastiveLoss(samples=samples)._sample(labels.view(1, -1), wrong.view(1, -1))
    assert places.unique().numel() == places.numel() == min(samples, labels.numel())
    return places[0]


@pytest.mark.parametrize(("wrong", "taken"), [(0, 0), (10, 10), (64, 32), (1000, 32)])
def test_half_of_the_sample_is_classified_wrongly_if_there_is_so_much(wrong, taken):
    labels = torch.arange(4).repeat(1024)
    marked = torch.zeros(4096, dtype=torch.bool)
    marked[torch.randperm(4096, generator=torch.Generator().manual_seed(0))[:wrong]] = True
    places = sampled(labels, marked, 64)
    assert marked[places[:32]].sum() == taken
    # The others come from all that is left, where at most a quarter is wrong.
    assert marked[places].sum() <= taken + 16


def test_rare_classes_are_sampled_as_often_as_others():
    labels = torch.zeros(4096, dtype=torch.int64)
    labels[100:140] = 1
    places = sampled(labels, torch.zeros(4096, dtype=torch.bool), 32)
    assert 8 <= (labels[places] == 1).sum() <= 24


def test_void_fills_up_only_what_nothing_else_can():
    labels = torch.full((64,), VOID)
    labels[::8] = torch.arange(8)
    places = sampled(labels, torch.ones(64, dtype=torch.bool), 16)
    assert set(range(0, 64, 8)) <= set(places.tolist())
    assert set(range(0, 64, 8)) == set(places[:8].tolist())


def test_no_value_is_read_on_the_host():
    with torch.device("meta"):
        embedding = PixelEmbedding(6)(torch.randn(2, 6, 8, 8))
        labels = torch.zeros(2, 32, 32, dtype=torch.int64)
        PixelContrastiveLoss()(embedding, torch.randn(2, 3, 32, 32), labels).backward()


def test_its_layers_learn_with_the_network_and_are_no_part_of_it(tmp_path):
    out = tmp_path / "run"
    training.main(
        [
            *tiny_arguments(out, steps=3),
            "--loss.pixel_weight",
            "0.1",
            "--trainer.accelerator",
            "cpu",
        ]
    )
    saved = torch.load(out / "last.ckpt", weights_only=False)["state_dict"]
    own = [name for name in saved if name.startswith("loss.embedded")]
    assert len(own) == 4
    assert all("embedded" not in name for name in load_file(out / "final" / "model.safetensors"))
    assert "loss/pixel" in (out / "train.csv").read_text().splitlines()[0]


def test_only_a_network_in_training_gives_what_it_compares():
    network = SegmentationNetwork(3, [2], width=8, depth=2)
    loss = SegmentationLoss([2], pixel_weight=0.5, pixel_channels=8)
    image = torch.rand(2, 3, 32, 32)
    labels = torch.randint(3, (2, 32, 32))
    batch = {"semantic": labels, "instance": (labels == 2).long()}
    losses = loss(network(image), batch)
    others = sum(
        loss.weights[name] * losses[name] for name in losses if name not in ("loss", "pixel")
    )
    torch.testing.assert_close(losses["loss"], others + 0.5 * losses["pixel"])
    losses["loss"].backward()
    assert all(p.grad.abs().sum() > 0 for p in loss.parameters())
    assert network.eval()(image).finest is None
    assert "pixel" not in loss(network(image), batch)
    with pytest.raises(ValueError, match="pixel_channels: expected an int with a pixel_weight"):
        SegmentationLoss([2], pixel_weight=0.5)


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"temperature: expected a finite number above 0, got 0"):
        PixelContrastiveLoss(temperature=0)
    with pytest.raises(ValueError, match=r"samples: expected a positive int, got 0"):
        PixelContrastiveLoss(samples=0)
