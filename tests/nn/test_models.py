# SPDX-License-Identifier: BSD-3-Clause
"""MaskAttnUNet: shape, counts, masks, and the same answer with every core."""

import copy
import os
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from maskattn_kernels import select_tokens
from maskattn_kernels.models import ConvBlock, MaskAttnUNet
from maskattn_kernels.nn import MaskAttention2d


def tiny(**arguments) -> MaskAttnUNet:
    torch.manual_seed(0)
    return MaskAttnUNet(**{"classes": 5, "width": 8, "depth": 2, **arguments})


def count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


# --- shape --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("preset", "parameters", "gflops"),
    [
        ("paper", 46_094_398, 11.8),
        ("published", 22_590_550, 52.9),
        ("edge", 1_417_606, 3.4),
    ],
)
def test_presets_have_the_size_documented(preset, parameters, gflops):
    with torch.device("meta"):
        network = MaskAttnUNet.from_preset(preset, classes=150, core="identity")
        with FlopCounterMode(display=False) as counter:
            network(torch.empty(1, 3, 128, 128))
    assert count(network) == parameters
    assert round(counter.get_total_flops() / 1e9, 1) == gflops


def test_published_count_is_explained():
    """24.9 M there: ours, a LayerNorm over (64,128,128) and not (64,), 230 k never called."""
    layer_norm = 2 * (64 * 128 * 128 - 64)
    assert round((22_590_550 + layer_norm + 230_000) / 1e6, 1) == 24.9


def test_attention_shapes_are_those_described():
    """(N, D) at 128 x 128, in order."""
    with torch.device("meta"):
        network = MaskAttnUNet.from_preset("published", core="identity")  # shapes only
        logits, masks = network(torch.empty(1, 3, 128, 128), return_masks=True)
    modules = [*network.down_attention, *network.up_attention]
    sizes = [(m[0].numel(), a.channels) for m, a in zip(masks.values(), modules, strict=True)]
    assert sizes == [(4096, 128), (1024, 256), (256, 256), (1024, 128), (4096, 64), (16384, 64)]
    assert logits.shape == (1, 19, 128, 128)
    assert [block.conv2.out_channels for block in network.bottleneck] == [512, 512, 256]
    assert all(a.num_heads == 1 for a in modules)


def test_preset_arguments_can_be_overridden():
    network = MaskAttnUNet.from_preset("edge", in_channels=1, classes=2, width=8)
    assert network(torch.randn(1, 1, 16, 16)).shape == (1, 2, 16, 16)
    with pytest.raises(ValueError, match=r"name: expected one of \"paper\", .* got 'huge'"):
        MaskAttnUNet.from_preset("huge")


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (8, 8), (16, 20), (17, 31), (30, 41)])
def test_any_input_size(size):
    network = tiny().eval()
    with torch.no_grad():
        logits = network(torch.randn(2, 3, *size))
    assert logits.shape == (2, 5, *size)
    assert logits.isfinite().all()


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_any_depth(depth):
    network = tiny(depth=depth, width=4, num_heads=2).eval()
    assert len(network.scales) == 2 * depth
    assert network(torch.randn(1, 3, 20, 20)).shape == (1, 5, 20, 20)


def test_logits_are_plain():
    """The last thing is a convolution with a bias: no norm and no activation on logits."""
    network = tiny()
    assert [name for name, _ in network.named_children()][-1] == "head"
    assert isinstance(network.head, nn.Conv2d)
    assert network.eval()(torch.randn(1, 3, 16, 16)).min() < 0


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("masks", ["some", "nothing"])
def test_every_parameter_gets_a_gradient(mode, masks):
    network = tiny().train(mode == "train")
    image = torch.randn(2, 3, 18, 23)
    given = None if masks == "some" else torch.zeros(2, 18, 23, dtype=torch.bool)
    network(image, given).square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        # Nothing selected: attention's products are zero, and so are the gradients of projections.
        # Train mode: the norm after a block's own norm takes its scale and shift away.
        if masks == "some" and mode == "eval":
            assert parameter.grad.abs().sum() > 0, name


def test_blocks():
    block = ConvBlock(4, 4, residual=True).eval()
    x = torch.randn(1, 4, 5, 5)
    inner = copy.deepcopy(block)
    inner.residual = False
    torch.testing.assert_close(block(x), nn.functional.gelu(x + inner(x)))
    with pytest.raises(ValueError, match=r"out_channels: expected 4 .* got 8"):
        ConvBlock(4, 8, residual=True)


# --- masks --------------------------------------------------------------------------------------


def test_masks_returned_are_masks_used():
    network = tiny(keep=0.5).eval()
    image = torch.randn(2, 3, 17, 24)
    with torch.no_grad():
        logits, masks = network(image, return_masks=True)
        assert tuple(masks) == network.scales == ("down1", "down2", "up1", "up2")
        sizes = [(9, 12), (5, 6), (9, 12), (17, 24)]
        assert [tuple(mask.shape) for mask in masks.values()] == [(2, *size) for size in sizes]
        for mask, (height, width) in zip(masks.values(), sizes, strict=True):
            assert mask.sum((1, 2)).tolist() == [round(0.5 * height * width)] * 2
        assert torch.equal(network(image, masks), logits)
        assert torch.equal(network(image, list(masks.values())), logits)
        assert torch.equal(network(image, {"up2": masks["up2"]}), logits)
        indices = {name: select_tokens(mask.flatten(1)) for name, mask in masks.items()}
        assert torch.equal(network(image, indices), logits)
        everything = {name: torch.ones_like(mask) for name, mask in masks.items()}
        assert not torch.allclose(network(image, everything), logits)


def test_scales_draw_different_masks():
    _, masks = tiny(keep=0.5)(torch.randn(1, 3, 32, 32), return_masks=True)
    assert not torch.equal(masks["down1"], masks["up1"])


def test_full_resolution_mask_is_pooled():
    network = tiny().eval()
    image = torch.randn(1, 3, 17, 24)
    mask = torch.zeros(1, 17, 24, dtype=torch.bool)
    mask[0, 16, 3] = True
    logits, masks = network(image, mask, return_masks=True)
    places = {name: m[0].nonzero().tolist() for name, m in masks.items()}
    assert places == {"down1": [[8, 1]], "down2": [[4, 0]], "up1": [[8, 1]], "up2": [[16, 3]]}
    assert torch.equal(network(image, mask[:, None]), logits)
    shared = network(image.expand(3, -1, -1, -1), mask)
    torch.testing.assert_close(shared, logits.expand(3, -1, -1, -1))


def test_checkpoint_brings_masks_back():
    saved, loaded = tiny(seed=3).eval(), tiny(seed=4).eval()
    image = torch.randn(2, 3, 16, 16)
    loaded.load_state_dict(saved.state_dict())
    with torch.no_grad():
        assert torch.equal(saved(image), loaded(image))


@pytest.mark.parametrize(
    ("masks", "kind", "words"),
    [
        (torch.ones(1, 16, 16), TypeError, "masks: .* got torch.float32"),
        (torch.ones(1, 8, 8).bool(), ValueError, r"masks: expected shape \(2, 16, 16\), got"),
        (torch.ones(3, 16, 16).bool(), ValueError, r"masks: .* got \(3, 16, 16\)"),
        ({"down9": None}, ValueError, "masks: expected names among .* got 'down9'"),
        ([None], ValueError, "masks: expected 4 masks, got 1"),
        (0.5, TypeError, "masks: .* got float"),
        ({"up2": torch.ones(2, 8, 8).bool()}, ValueError, r"mask: .* got \(2, 8, 8\)"),
    ],
)
def test_bad_masks(masks, kind, words):
    with pytest.raises(kind, match=words):
        tiny()(torch.randn(2, 3, 16, 16), masks)


@pytest.mark.parametrize(
    ("image", "kind", "words"),
    [
        ("x.png", TypeError, "image: expected a Tensor, got str"),
        (torch.zeros(1, 3, 8, 8).byte(), TypeError, "image: .* got torch.uint8"),
        (torch.zeros(3, 8, 8), ValueError, r"image: .* got \(3, 8, 8\)"),
        (torch.zeros(1, 4, 8, 8), ValueError, r"image: .* got \(1, 4, 8, 8\)"),
        (torch.zeros(1, 3, 0, 8), ValueError, r"image: .* got \(1, 3, 0, 8\)"),
    ],
)
def test_bad_images(image, kind, words):
    with pytest.raises(kind, match=words):
        tiny()(image)


@pytest.mark.parametrize(
    ("arguments", "kind", "words"),
    [
        ({"width": 8.0}, TypeError, "width: .* got float"),
        ({"depth": 0}, ValueError, "depth: .* got 0"),
        ({"classes": -1}, ValueError, "classes: .* got -1"),
        ({"bottleneck": 0}, ValueError, "bottleneck: .* got 0"),
        ({"keep": 2.0}, ValueError, "keep: .* got 2.0"),
        ({"width": 512}, ValueError, "num_heads: expected at least 4 for channels=1024"),
        ({"core": "fast"}, ValueError, "core: .* got 'fast'"),
    ],
)
def test_bad_constructor_arguments(arguments, kind, words):
    with pytest.raises(kind, match=words), torch.device("meta"):
        MaskAttnUNet(**arguments)


# --- cores, formats, modes ----------------------------------------------------------------------


@pytest.mark.parametrize("sparsity", ["qk", "k"])
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_dense_and_sparse_cores_agree(sparsity, mode):
    """Same state_dict, and the sparse core as near to float64 as the dense one (times 4)."""
    dense = tiny(core="dense", sparsity=sparsity)
    # Shallow and narrow, with running statistics that do not blow up rounding errors in eval mode.
    dense.train()(torch.randn(8, 3, 32, 32))
    dense.train(mode == "train")
    others = {core: tiny(core=core, sparsity=sparsity) for core in ("sparse", "sdpa")}
    image = torch.randn(2, 3, 33, 26)
    exact = copy.deepcopy(dense).double()(image.double())
    baseline = (copy.deepcopy(dense)(image) - exact).abs().max()
    for core, network in others.items():
        network.load_state_dict(dense.state_dict(), strict=True)
        assert list(network.state_dict()) == list(dense.state_dict())
        network.train(mode == "train")
        assert (network(image) - exact).abs().max() <= 4 * baseline, core


def test_memory_format_of_the_image_does_not_matter():
    network = tiny().eval()
    image = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        last = network(image.contiguous(memory_format=torch.channels_last))
        assert last.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(network(image), last)
        network.to(memory_format=torch.channels_last)
        torch.testing.assert_close(network(image), last)


def test_bfloat16():
    network = tiny().eval()
    image = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        want = network(image)
        half = copy.deepcopy(network).bfloat16()(image.bfloat16())
        with torch.autocast("cpu", torch.bfloat16):
            mixed = network(image)
    assert half.dtype == torch.bfloat16
    for got in (half, mixed):
        torch.testing.assert_close(got.float(), want, atol=0.1, rtol=0.1)


def test_compiles_in_one_graph():
    network = tiny(width=4, depth=1).eval()
    image = torch.randn(1, 3, 12, 10)
    compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
    logits = compiled(image)
    torch.testing.assert_close(logits, network(image))
    logits.sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_attention_learns_something():
    """A few steps on one image bring the loss down, through sparse attention at every scale."""
    network = tiny(keep=0.5)
    image, target = torch.randn(1, 3, 16, 16), torch.randint(5, (1, 16, 16))
    optimizer = torch.optim.Adam(network.parameters(), 1e-2)
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(network(image), target)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert sum(isinstance(module, MaskAttention2d) for module in network.modules()) == 4


DDP = """
import os
import sys
import torch
import torch.distributed as dist
from maskattn_kernels.models import MaskAttnUNet

rank, store = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
torch.set_num_threads(1)
torch.manual_seed(rank)
network = MaskAttnUNet(classes=2, width=4, depth=1)
network = torch.nn.parallel.DistributedDataParallel(network)
for _ in range(2):  # the second forward raises where the first left parameters without a gradient
    network(torch.randn(1, 3, 8, 8)).sum().backward()
grads = torch.cat([p.grad.flatten() for p in network.parameters()])
both = [torch.empty_like(grads) for _ in range(2)]
dist.all_gather(both, grads)
assert torch.equal(*both)
dist.barrier()  # both have all they need of the other
os._exit(0)  # gloo's threads may not meet a finalizing interpreter (pytorch/pytorch#190489)
"""


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch has no distributed")
def test_two_processes_of_ddp(tmp_path):
    command = [sys.executable, "-c", DDP]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(
            [*command, str(rank), str(tmp_path / "store")],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for rank in ranks:
        _, errors = rank.communicate(timeout=120)
        assert rank.returncode == 0, errors
