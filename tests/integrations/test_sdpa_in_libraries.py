# SPDX-License-Identifier: BSD-3-Clause
"""replace_sdpa in models of timm and diffusers: their own results and gradients."""

import pytest
import torch
from optional_timm import import_timm

from maskattn_kernels.integrations.sdpa import replace_sdpa


def check(model, call, taken, handed_on=0):
    """A model inside the context gives what it gives outside, in the numbers of calls given."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for parameter in model.parameters():  # also those that libraries start at 0
            torch.nn.init.normal_(parameter, std=0.1)
    parameters = [p for p in model.parameters() if p.requires_grad]
    right = call(model)
    gradients = torch.autograd.grad(right.square().mean(), parameters, allow_unused=True)
    with replace_sdpa() as calls:
        got = call(model)
    assert (calls.taken, calls.handed_on.total()) == (taken, handed_on)
    torch.testing.assert_close(got, right, atol=1e-4, rtol=1e-4)
    ours = torch.autograd.grad(got.square().mean(), parameters, allow_unused=True)
    largest = max(gradient.abs().max().item() for gradient in gradients if gradient is not None)
    for mine, theirs in zip(ours, gradients, strict=True):
        assert (mine is None) == (theirs is None)
        if mine is not None:
            torch.testing.assert_close(mine, theirs, atol=1e-5 * largest, rtol=1e-3)


@pytest.mark.parametrize(
    ("name", "options", "taken", "handed_on"),
    [
        ("vit_tiny_patch16_224", {"img_size": 64, "depth": 2}, 2, 0),
        ("eva02_tiny_patch14_224", {"img_size": 56, "depth": 2}, 2, 0),
        ("vit_small_patch14_reg4_dinov2", {"img_size": 56, "depth": 2}, 2, 0),
        ("vit_relpos_small_patch16_224", {"img_size": 64, "depth": 2}, 0, 2),  # biases of pairs
    ],
)
def test_timm(name, options, taken, handed_on):
    model = import_timm().create_model(name, num_classes=3, **options).eval()
    image = torch.randn(2, 3, options["img_size"], options["img_size"])
    check(model, lambda model: model(image), taken, handed_on)


def test_timm_with_a_quarter_of_the_tokens():
    model = import_timm().create_model("vit_tiny_patch16_224", img_size=64, depth=2).eval()
    tokens = torch.arange(17) % 4 == 0  # the class token, and every fourth patch
    image = torch.randn(2, 3, 64, 64)
    with torch.no_grad(), replace_sdpa(tokens) as calls:
        some = model(image)
    assert str(calls) == "taken 2 (2 with tokens), handed on 0"
    with torch.no_grad(), replace_sdpa(torch.ones_like(tokens)):
        torch.testing.assert_close(model(image), model(image))
        assert not torch.allclose(model(image), some)


def test_diffusers():
    """Captions of two lengths, padded; attention among pixels has no mask."""
    diffusers = pytest.importorskip("diffusers", reason="needs the package diffusers")
    model = diffusers.UNet2DConditionModel(
        sample_size=8,
        layers_per_block=1,
        block_out_channels=(32, 64),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=2,
    ).eval()
    latent, caption = torch.randn(2, 4, 8, 8), torch.randn(2, 7, 32)
    kept = (torch.arange(7) < torch.tensor([[7], [3]])).long()

    def call(model):
        return model(latent, torch.tensor([1]), caption, encoder_attention_mask=kept).sample

    check(model, call, taken=8)
