# SPDX-License-Identifier: BSD-3-Clause
"""FRMNet: counted work, any size, every parameter learns, the same answer with every core."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from maskattn_kernels import swap_attention, unswap_attention
from maskattn_kernels.models import FRM_PRESETS, FRMNet, LightEncoder, prepare_for_inference
from maskattn_kernels.models.frm_blocks import RELATIONS, Fusion, Injection, RefineBlock
from maskattn_kernels.nn import SparseAttentionCore

SMALL = {"channels": (8, 12, 16, 20), "depths": (1, 1, 1, 1), "kernel": 3, "ratio": 2}
INJECTS = ("stages", "add", "top", "none")


def tiny(seed: int = 0, **arguments) -> FRMNet:
    """A network with norms as training leaves them: at first, blocks of the encoder do nothing."""
    torch.manual_seed(seed)
    given = {"classes": 5, "dim": 24, "num_heads": 3, "width": 12, **arguments}
    network = FRMNet(**{"encoder": LightEncoder(**SMALL), **given})
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return network


def image(*size: int, batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(1))


# --- work ---------------------------------------------------------------------------------------


def flops(module: nn.Module, x: Tensor) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module(x)
    return counter.get_total_flops()


def products(network: FRMNet, tokens: int) -> int:
    """Of attention: of each head, two products for a pair of a query and a key, and one query."""
    total = 0
    for attention in network.attentions().values():
        selected = round(attention.selector.keep * tokens)
        pairs = selected * selected + selected
        total += 4 * attention.channels * pairs
    return total


@pytest.mark.parametrize(
    ("preset", "parameters", "gflops", "of_encoder"),
    [
        ("large", 11.1, 188, 135),
        ("base", 5.6, 94, 63),
        ("small", 2.65, 49.5, 28.4),
        ("tiny", 1.06, 19.3, 10.9),
        ("lite", 3.68, 51.6, 30.4),
    ],
)
def test_presets_have_the_size_documented(preset, parameters, gflops, of_encoder):
    """At 2048 x 1024; work that depends on the tokens that are selected is added by hand."""
    with torch.device("meta"):
        network = FRMNet.from_preset(preset, core="identity").eval()
        x = torch.empty(1, 3, 1024, 2048)
    total = (flops(network, x) + products(network, 64 * 128)) / 1e9
    limits = {"large": 200, "base": 100, "small": 50, "tiny": 20}
    assert total < limits.get(preset, 100)
    assert total == pytest.approx(gflops, rel=0.01)
    assert flops(network.encoder, x) / 1e9 == pytest.approx(of_encoder, rel=0.01)
    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(parameters, rel=0.01)


def test_the_counter_counts_what_is_selected():
    """So that what is added by hand above is what a real call does."""
    dense = tiny(core="identity").eval()
    sparse = copy.deepcopy(dense)
    for attention in sparse.attentions().values():
        attention.core = SparseAttentionCore()
    x = image(128, 256, batch=1)
    assert flops(sparse, x) == flops(dense, x) + products(sparse, 8 * 16)


def test_presets_by_name():
    assert set(FRM_PRESETS) == {"large", "base", "small", "tiny", "lite"}
    network = FRMNet.from_preset("tiny", classes=3, depth=2, inject="top")
    assert network.scales == ("refine1", "refine2")
    assert network.encoder.channels == (20, 40, 96, 160)
    other = FRMNet.from_preset("tiny", encoder=LightEncoder(**SMALL))
    assert other.encoder.channels == (8, 12, 16, 20)
    with pytest.raises(ValueError, match=r"name: expected one of \"large\", .* got 'huge'"):
        FRMNet.from_preset("huge")


# --- any size, any encoder ----------------------------------------------------------------------


@pytest.mark.parametrize("size", [(1, 1), (33, 33), (65, 97), (8, 200), (64, 96)])
@pytest.mark.parametrize("grid", [8, 32])
@pytest.mark.parametrize("inject", INJECTS)
@torch.no_grad()
def test_any_input_size(size, grid, inject):
    network = tiny(grid=grid, inject=inject, selector="topk").eval()
    logits, masks = network(image(*size), return_masks=True)
    assert logits.shape == (2, 5, *size)
    assert logits.isfinite().all()
    of_grid = (2, -(-size[0] // grid), -(-size[1] // grid))
    assert all(mask.shape == of_grid for mask in masks.values())
    assert len(masks) == (0 if inject == "none" else 2)


class RoundingDown(nn.Module):
    """An encoder of two strides far apart, whose sizes are rounded down."""

    channels, strides = (6, 10), (4, 32)

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 6, 4, stride=4), nn.Conv2d(6, 10, 8, stride=8)

    def forward(self, image):
        fine = self.first(image)
        return [fine, self.second(fine.relu())]


@pytest.mark.parametrize("size", [(64, 96), (63, 95)])
def test_other_encoders(size):
    network = tiny(encoder=RoundingDown()).eval()
    maps, _ = network.features(image(*size))
    assert [m.shape[1] for m in maps] == network.decoder_channels == [24, 12, 12]
    assert maps[0].shape[-2:] == (4, 6)
    assert network(image(*size)).shape == (2, 5, *size)


def test_images_do_not_feel_each_other():
    network = tiny(selector="topk").eval()
    x = image(64, 96)
    torch.testing.assert_close(network(x)[:1], network(x[:1]))


def test_memory_format_of_the_image_does_not_matter():
    network = tiny(selector="topk").eval()
    x = image(64, 96)
    torch.testing.assert_close(network(x.contiguous(memory_format=torch.channels_last)), network(x))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"grid": 12}, r"grid: expected a multiple or a divisor .* \(4, 8, 16, 32\), got 12"),
        ({"grid": 0}, "grid: expected a positive int, got 0"),
        ({"finest": 64}, "finest: expected at most 32, the encoder's last stride, got 64"),
        ({"inject": "all"}, "inject: expected one of \"stages\", .* got 'all'"),
        ({"relation": "linear"}, "relation: expected one of \"disentangled\", .* got 'linear'"),
        ({"num_heads": 5}, "num_heads: expected a divisor of channels=24, got 5"),
        ({"keep": {"down1": 0.5}}, 'keep: expected scales among "refine1", "refine2", got'),
    ],
)
def test_bad_arguments(arguments, words):
    with pytest.raises(ValueError, match=words) as caught:
        tiny(**arguments)
    assert "\n" not in str(caught.value)


def test_bad_encoders():
    one = nn.Conv2d(3, 4, 3)
    one.channels, one.strides = (4,), (16,)
    with pytest.raises(ValueError, match="encoder: expected a pyramid"):
        tiny(encoder=one)
    with pytest.raises(ValueError, match=r"image: expected shape \(B, 3, H, W\)"):
        tiny()(torch.zeros(1, 1, 8, 8))


# --- learning -----------------------------------------------------------------------------------


@pytest.mark.parametrize("inject", INJECTS)
@pytest.mark.parametrize("selector", ["none", "random", "topk", "gumbel-topk", "local"])
def test_every_parameter_gets_a_gradient(inject, selector):
    """Through the head alone, as each of a network's processes needs it."""
    network = tiny(inject=inject, selector=selector, keep=0.5).eval()
    network(image(96, 128)).square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("relation", RELATIONS)
def test_every_relation_learns(relation):
    network = tiny(relation=relation, selector="topk", keep=0.5).eval()
    network(image(96, 128)).square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in network.parameters())


def test_no_token_selected_is_the_network_without_attention():
    """The control of every study: grid and injection, and nothing related."""
    network = tiny(selector="random", keep=0.0)
    without = copy.deepcopy(network)
    for attention in without.attentions().values():
        nn.init.zeros_(attention.out.weight)
    x = image(96, 128)
    for train in (False, True):
        torch.testing.assert_close(network.train(train)(x), without.train(train)(x))
    network(x).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


@pytest.mark.parametrize("inject", INJECTS)
def test_what_is_given_back_to_which_stage(inject):
    network = tiny(inject=inject)
    gated = [isinstance(i, Injection) and i.gate is not None for i in network.injections]
    given = [isinstance(i, Injection) for i in network.injections]
    coarsest = [True, False, False, False]
    assert given == {"top": coarsest, "none": [False] * 4}.get(inject, [True] * 4)
    assert gated == {"add": [False] * 4}.get(inject, given)


# --- attention ----------------------------------------------------------------------------------


@pytest.mark.parametrize("selector", ["none", "topk", "local"])
def test_cores_agree(selector):
    sparse = tiny(selector=selector, keep=0.3).eval()
    x = image(96, 128)
    for core in ("dense", "sdpa"):
        other = tiny(selector=selector, keep=0.3, core=core).eval()
        other.load_state_dict(sparse.state_dict(), strict=True)
        torch.testing.assert_close(other(x), sparse(x), atol=1e-5, rtol=1e-4)


def test_swap_and_back():
    network = tiny(selector="topk", core="dense").eval()
    x = image(96, 128)
    y = network(x)
    assert [row[0] for row in swap_attention(network).swapped] == [
        "blocks.0.attention",
        "blocks.1.attention",
    ]
    torch.testing.assert_close(network(x), y, atol=1e-5, rtol=1e-4)
    unswap_attention(network)
    assert torch.equal(network(x), y)


def test_all_ways_to_give_masks():
    network = tiny(selector="topk").eval()
    x = image(64, 96)
    mask = torch.rand(2, 64, 96) < 0.01
    pooled = F.max_pool2d(mask.float(), 16).bool()
    logits, used = network(x, mask, return_masks=True)
    assert all(torch.equal(m, pooled) for m in used.values())
    assert torch.equal(network(x, [pooled, pooled]), logits)
    assert torch.equal(network(x, {"refine1": pooled, "refine2": pooled}), logits)
    with pytest.raises(ValueError, match="masks: expected names among"):
        network(x, {"down1": pooled})


def test_guesses_are_made_of_all_maps_but_the_last():
    network = tiny(selector="entropy", keep=0.25).eval()
    seen = []

    def guess(map: Tensor) -> Tensor:
        seen.append(map)
        return map[:, :7]

    maps, selections = network.features(image(64, 96), guess=guess)
    assert all(a is b for a, b in zip(seen, maps[:-1], strict=True))
    assert [s.queries.keep_ratio.tolist() for s in selections.values()] == [[0.25] * 2] * 2


def test_keep_and_selector_can_be_changed():
    network = tiny(selector="topk", keep=0.5).eval()
    network.set_keep({"refine2": 0.25})
    _, selections = network.features(image(64, 96))
    assert [s.keep_ratio[0].item() for s in selections.values()] == [0.5, 0.25]
    network.set_selector("none")
    network(image(64, 96))


def test_the_second_block_joins_the_logits_of_the_first():
    network = tiny(selector="topk")
    heads = [attention.mask_head for attention in network.attentions().values()]
    assert [head.carry is not None for head in heads] == [False, True]


# --- deployment ---------------------------------------------------------------------------------


@pytest.mark.parametrize("selector", ["none", "random", "topk"])
@torch.inference_mode()
def test_prepared_for_inference(selector):
    network = tiny(selector=selector).eval()
    x = image(96, 128)
    prepared = prepare_for_inference(network)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in prepared.modules())
    torch.testing.assert_close(prepared(x), network(x), atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def test_prepared_in_bfloat16():
    network = tiny(selector="none").eval()
    x = image(96, 128)
    logits, exact = prepare_for_inference(network, torch.bfloat16)(x), network(x)
    assert logits.dtype == torch.float32
    assert (logits - exact).std() < 0.03 * exact.std()


@pytest.mark.parametrize("selector", ["random", "topk"])
def test_compiles_in_one_graph(selector):
    network = tiny(selector=selector)
    compiled = torch.compile(copy.deepcopy(network), fullgraph=True, backend="aot_eager")
    x = image(64, 96)
    torch.testing.assert_close(compiled(x), network(x))
    compiled(x).square().mean().backward()


@torch.no_grad()
def test_export():
    network = tiny(selector="topk").eval()
    x = image(64, 96, batch=1)
    program = torch.export.export(network, (x,), strict=False)
    torch.testing.assert_close(program.module()(x), network(x))


# --- parts --------------------------------------------------------------------------------------


def test_fusion_averages_what_lies_in_a_place():
    fusion = Fusion([1, 1, 1], [4, 8, 16], grid=8, dim=3).eval()
    nn.init.dirac_(fusion.project[0].weight)
    fine, same, coarse = torch.rand(1, 1, 6, 6), torch.rand(1, 1, 3, 3), torch.rand(1, 1, 2, 2)
    y = fusion([fine, same, coarse], torch.Size((3, 3)))
    scale = (1 + 1e-5) ** -0.5
    torch.testing.assert_close(y[:, :1], F.avg_pool2d(fine, 2) * scale)
    torch.testing.assert_close(y[:, 1:2], same * scale)
    torch.testing.assert_close(y[:, 2:], F.interpolate(coarse, (3, 3), mode="bilinear") * scale)


def test_places_at_the_edge_average_what_is_there():
    fusion = Fusion([1], [4], grid=8, dim=1).eval()
    nn.init.ones_(fusion.project[0].weight)
    y = fusion([torch.ones(1, 1, 3, 5)], torch.Size((2, 3)))
    torch.testing.assert_close(y, torch.full_like(y, (1 + 1e-5) ** -0.5))


def test_injection_is_a_gate_and_a_sum():
    injection = Injection(4, 3, grid=8, stride=4).eval()
    local, refined = torch.randn(1, 3, 4, 6), torch.randn(1, 4, 2, 3)
    gate, context = (
        F.interpolate(t, (4, 6), mode="bilinear")
        for t in (injection.gate(refined), injection.context(refined))
    )
    torch.testing.assert_close(injection(local, refined), local * gate.sigmoid() + context)


def test_block_is_attention_and_convolutions():
    block = RefineBlock(8, 2).eval()
    x = torch.randn(1, 8, 5, 6)
    y, selection = block(x)
    assert selection is None
    normed = F.layer_norm(x.permute(0, 2, 3, 1), (8,)).permute(0, 3, 1, 2)
    attended = x + block.attention(normed)
    torch.testing.assert_close(y, attended + block.convolutions(attended))
