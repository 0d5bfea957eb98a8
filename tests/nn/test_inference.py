# SPDX-License-Identifier: BSD-3-Clause
"""`prepare_for_inference`: the same results from a faster copy, and what it leaves alone."""

import copy
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn

from maskattn_kernels.models import MaskAttnUNet, prepare_for_inference
from maskattn_kernels.nn import MaskAttention2d
from maskattn_kernels.segmentation.model.network import SegmentationNetwork

SELECTORS = ("random", "topk", "gumbel-topk", "local", "threshold", "none")


def as_trained(network: nn.Module, seed: int = 0) -> nn.Module:
    """The network with norms as training leaves them, far from the identity."""
    generator = torch.Generator().manual_seed(seed)

    def draw(t: Tensor, low: float, high: float) -> None:
        t.copy_(torch.rand(t.shape, generator=generator) * (high - low) + low)

    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.affine:
                draw(module.weight, 0.5, 1.5)
                draw(module.bias, -0.5, 0.5)
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats:
                draw(module.running_mean, -1.0, 1.0)
                draw(module.running_var, 0.2, 3.0)
    return network.eval()


def unet(**options) -> nn.Module:
    torch.manual_seed(0)
    return as_trained(MaskAttnUNet(classes=5, width=8, depth=2, **options))


def segmenter(**options) -> nn.Module:
    torch.manual_seed(0)
    return as_trained(SegmentationNetwork(5, things=[3, 4], width=8, depth=2, **options))


def image(batch: int = 2, height: int = 32, width: int = 40) -> Tensor:
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(1))


def assert_close(got: Tensor, expected: Tensor, tolerance: float = 1e-4) -> None:
    """The tolerance that `prepare_for_inference` states: of the standard deviation."""
    assert got.shape == expected.shape and got.dtype == expected.dtype
    assert (got - expected).abs().max() <= tolerance * expected.std()


@pytest.mark.parametrize("selector", SELECTORS)
@torch.inference_mode()
def test_float32_gives_the_same_for_every_selector(selector: str) -> None:
    network = unet(selector=selector)
    expected, masks = network(image(), return_masks=True)
    got, got_masks = prepare_for_inference(network)(image(), return_masks=True)
    assert_close(got, expected)
    for scale, mask in masks.items():
        assert mask is None or torch.equal(mask, got_masks[scale])


@pytest.mark.parametrize("task", ["semantic", "panoptic"])
@pytest.mark.parametrize("threads", [1, 2])
@torch.inference_mode()
def test_every_output_of_a_segmentation_network_is_the_same(task: str, threads: int) -> None:
    network = segmenter(task=task)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for batch, height, width in ((1, 32, 40), (3, 17, 9), (17, 16, 16)):
            pixels = image(batch, height, width)
            expected = network(pixels)
            got = prepare_for_inference(network)(pixels)
            assert_close(got.semantic, expected.semantic)
            for name in ("center", "offset", "embedding") if task == "panoptic" else ():
                assert_close(getattr(got, name), getattr(expected, name))
            assert got.selections.keys() == expected.selections.keys()
    finally:
        torch.set_num_threads(before)


def test_no_norm_after_a_convolution_is_left_and_the_original_is_as_before() -> None:
    network = segmenter()
    before = copy.deepcopy(network.state_dict())
    layers = [type(module) for module in network.modules()]
    for dtype in (torch.float32, torch.bfloat16):
        prepared = prepare_for_inference(network, dtype)
        assert not any(isinstance(module, nn.BatchNorm2d) for module in prepared.modules())
    assert [type(module) for module in network.modules()] == layers
    assert all(p.requires_grad for p in network.parameters())
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_a_network_in_train_mode_is_prepared_as_for_eval_and_stays_in_train_mode() -> None:
    network = unet().train()
    prepared = prepare_for_inference(network)
    assert network.training
    with torch.inference_mode():
        assert_close(prepared(image()), network.eval()(image()))


@pytest.mark.parametrize("norm", ["after", "before"])
@torch.inference_mode()
def test_bfloat16_agrees_and_its_logits_are_float32(norm: str) -> None:
    # No choice that rounding could change.
    network = segmenter(selector="none", core="sdpa", attention_norm=norm)
    for name, weight in network.named_parameters():
        if "proj" in name:  # zero at first
            nn.init.normal_(weight)
    expected = network(image())
    got = prepare_for_inference(network, torch.bfloat16)(image())
    for name in ("semantic", "center", "offset", "embedding"):
        assert_close(getattr(got, name), getattr(expected, name), tolerance=0.1)
    off = (got.semantic - expected.semantic).abs().mean() / expected.semantic.std()
    assert 1e-4 < off < 0.02  # it is bfloat16 that has computed, and it has computed the same


class Pairs(nn.Module):
    """A user's own module, with pairs to fold and with convolutions that must stay."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2, padding=1, groups=1), nn.BatchNorm2d(8), nn.GELU()
        )
        self.grouped = nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=4, bias=False)
        self.norm = nn.BatchNorm2d(8, affine=False)
        self.reflected = nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect")
        self.same = nn.Conv2d(8, 8, 3, padding="same")
        self.tanh = nn.GELU(approximate="tanh")
        self.shared = nn.Conv2d(8, 8, 1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(8) for _ in range(3))
        self.stats_of_batch = nn.BatchNorm2d(8, track_running_stats=False)
        self.linear = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.grouped(self.first(x)))
        x = self.norms[0](self.reflected(x))
        x = self.tanh(self.stats_of_batch(self.same(x)))
        x = self.norms[1](self.shared(x)) + self.norms[2](self.shared(x))
        return self.linear(x.mean((2, 3)))


class Branches(nn.Module):
    """A convolution whose result is used before its norm as well."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return x + self.norm(x)


class Decides(nn.Module):
    """A module that no trace can show, around one that a trace shows."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = Pairs()
        self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x))
        return self.inside(x) if x.mean() > -9 else x


@pytest.mark.parametrize("make", [Pairs, Branches, Decides, lambda: nn.Conv2d(3, 2, 1)])
@torch.inference_mode()
def test_a_users_own_module_gives_the_same(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    network = as_trained(make())
    assert_close(prepare_for_inference(network)(image()), network(image()))


@torch.inference_mode()
def test_an_image_without_a_batch() -> None:
    network = as_trained(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.GELU()))
    with pytest.raises(ValueError, match="4D"):
        network(image()[0])  # the norm needs a batch; without one, the convolution does not
    expected = network(image())[0]
    assert_close(prepare_for_inference(network)(image()[0]), expected)


def test_other_threads_run_and_prepare_networks_meanwhile() -> None:
    call = nn.Module.__call__
    network, pixels = unet(), image(1, 16, 16)
    with torch.inference_mode():
        expected = network(pixels)

    def run(prepares: bool) -> Tensor:
        with torch.inference_mode():
            for _ in range(10):
                got = (prepare_for_inference(network) if prepares else network)(pixels)
        return got

    with ThreadPoolExecutor(4) as pool:
        for got in pool.map(run, [True, False, True, False]):
            assert_close(got, expected)
    assert nn.Module.__call__ is call


def norms_in(network: nn.Module) -> int:
    return sum(isinstance(m, nn.BatchNorm2d) for m in prepare_for_inference(network).modules())


def test_only_pairs_that_are_called_once_and_in_a_row_are_folded() -> None:
    assert norms_in(Pairs()) == 3  # after the shared convolution, and with statistics of the batch
    assert norms_in(Branches()) == 1
    assert norms_in(Decides()) == 4
    watched = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
    assert norms_in(watched) == 0
    watched[1].register_forward_hook(lambda *_: None)
    assert norms_in(watched) == 1
    watched = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
    assert norms_in(nn.ModuleDict({"a": watched, "b": nn.Sequential(watched[0])})) == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.inference_mode()
def test_what_a_pixel_that_is_not_selected_holds_changes_no_other(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    attention = prepare_for_inference(MaskAttention2d(16, num_heads=2), dtype)
    x = torch.randn(2, 16, 6, 7).contiguous(memory_format=torch.channels_last)
    mask = torch.rand(2, 6, 7) < 0.4
    expected = attention(x, mask)
    poisoned = attention(x.masked_fill(~mask[:, None], float("nan")), mask)
    kept = mask[:, None].expand_as(expected)
    assert expected.isfinite().all() and torch.equal(poisoned[kept], expected[kept])


@torch.inference_mode()
def test_nan_in_one_image_stays_in_it() -> None:
    prepared = prepare_for_inference(segmenter())
    pixels = image(2)
    expected = prepared(pixels).semantic[1]
    pixels[0, :, 3, 3] = float("nan")
    got = prepared(pixels).semantic
    assert torch.equal(got[1], expected) and got[0].isnan().any()


@torch.inference_mode()
def test_an_empty_batch() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        assert prepare_for_inference(unet(), dtype)(image(0)).shape == (0, 5, 32, 40)


def test_wrong_arguments_are_told_in_one_line() -> None:
    with pytest.raises(TypeError, match=r"^network: expected a torch.nn.Module, got str$"):
        prepare_for_inference("unet")
    with pytest.raises(TypeError, match=r"^dtype: expected torch.float32 or torch.bfloat16, got"):
        prepare_for_inference(nn.Linear(2, 2), torch.float16)
    with pytest.raises(ValueError, match=r"^dtype: expected torch.float32, as no convolution"):
        prepare_for_inference(nn.Sequential(nn.GELU()), torch.bfloat16)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.inference_mode()
def test_compiled_in_one_graph_it_gives_the_same(dtype: torch.dtype) -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)
    network = as_trained(MaskAttnUNet(classes=3, width=4, depth=1, selector="topk"))
    expected = prepare_for_inference(network, dtype)(image())
    got = prepare_for_inference(network, dtype, compile=True)(image())
    assert_close(got, expected, 1e-4 if dtype == torch.float32 else 0.3)
