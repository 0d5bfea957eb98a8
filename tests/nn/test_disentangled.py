# SPDX-License-Identifier: BSD-3-Clause
"""DisentangledAttention2d against loops that gather the selected tokens, and its edges."""

import copy

import pytest
import torch
import torch.nn.functional as F
from disentangled import (
    ALL,
    FORMS,
    HEIGHT,
    WIDTH,
    B,
    C,
    H,
    LseCore,
    N,
    by_loops,
    by_module,
    flat,
    masks,
    module_of,
    pixels,
    q_and_k,
    results,
    with_heads,
)
from harness import TARGETS, activate, ran_on
from oracle import assert_close, largest
from torch import Tensor, nn

from maskattn_kernels import swap_attention, unswap_attention
from maskattn_kernels.models import prepare_for_inference
from maskattn_kernels.nn import (
    DisentangledAttention2d,
    GumbelTopKSelector,
    RandomSelector,
    SparseAttentionCore,
    TopKSelector,
)

# --- exact --------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_equals_the_loops(target, form, monkeypatch):
    """Output and every gradient, on every backend, as near to float64 as eager PyTorch."""
    activate(target, monkeypatch)
    if target.device != "cpu":
        pytest.skip("the loops and their masks are on the CPU")
    dtype = target.dtype
    truth = results(form, by_loops(form), module_of(form), torch.float64)
    orders = (None, 0, 1)
    cores = ["dense", *(LseCore(order) for order in orders)]
    eager = [results(form, by_loops(form, order), module_of(form), dtype) for order in orders]
    eager += [results(form, by_module(form), module_of(form, core=core), dtype) for core in cores]
    module = module_of(form, backend=target.backend)
    with ran_on(target.backend):
        got = results(form, by_module(form), module, dtype)
    assert got.keys() == truth.keys()
    most = max(largest(t.abs()) for t in truth.values())
    for name, result in got.items():
        if truth[name].any():
            assert_close(name, result, truth[name], [e[name] for e in eager], dtype)
        else:  # the scores of a single key: terms as large as the others' cancel
            assert largest(result.double().abs()) <= 4 * torch.finfo(dtype).eps * most, name


@pytest.mark.parametrize("core", ["dense", "sdpa"])
@pytest.mark.parametrize("form", FORMS)
def test_cores_agree(form, core):
    sparse, other = module_of(form), module_of(form, core=core)
    assert list(sparse.state_dict()) == list(other.state_dict())
    ours, theirs = (results(form, by_module(form), m, torch.float32) for m in (sparse, other))
    for name, result in ours.items():
        torch.testing.assert_close(result, theirs[name], atol=2e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize("form", ["apart", "biased", "index of heads", "pooled over all"])
def test_gradients_are_derivatives(form):
    module = module_of(form, backend="reference").double()
    x = pixels()[0].requires_grad_()
    names, parameters = zip(*module.named_parameters(), strict=True)
    bias = FORMS[form][2]
    given = [] if bias is None else [bias.double().requires_grad_()]

    def forward(x, *rest):
        weights = dict(zip(names, rest, strict=False))
        arguments = (x, FORMS[form][1], *rest[len(names) :])
        return torch.func.functional_call(module, weights, arguments)

    assert torch.autograd.gradcheck(forward, (x, *parameters, *given), fast_mode=True)


# --- identities ---------------------------------------------------------------------------------


def test_a_mask_of_everything_is_no_mask():
    module, x = module_of("all"), pixels()[0].float()
    assert torch.equal(module(x), module(x, ALL))


def test_order_of_tokens_does_not_matter():
    module, x = module_of("all"), pixels()[0]
    order = torch.randperm(N)
    keys, queries = masks(B, N), masks(B, N, seed=2)
    chosen = flat(keys)._replace(queries=flat(queries))
    permuted = flat(keys[:, order])._replace(queries=flat(queries[:, order]))
    y = module.double()(x, chosen).flatten(2)[..., order]
    moved = x.flatten(2)[..., order].view_as(x)
    torch.testing.assert_close(module(moved, permuted).flatten(2), y)


def test_what_all_pixels_share_reaches_the_values_alone():
    """Scores and saliency do not feel it: y changes by what twice the shared value makes."""
    module, x = module_of("all").double(), pixels()[0]
    shared = torch.randn(C, dtype=torch.float64)
    mask = masks(B, N)
    change = (module(x + shared.view(1, C, 1, 1), mask) - module(x, mask)).flatten(2)
    want = module.out(2 * module.value(shared)).view(1, C, 1) * mask.unsqueeze(1)
    torch.testing.assert_close(change, want.expand(B, C, N))


def test_plain_attention_is_the_normalised_product_of_both_terms():
    """softmax(q.k) ~ softmax((q - m).(k - m)) * softmax(m.k): what is taken apart here."""
    plain = module_of("all", pairwise="plain", unary=None, core="dense").double()
    x = pixels()[0]
    q, k = (plain._heads(t) for t in plain.qk(x.flatten(2).mT).chunk(2, -1))
    m = q.mean(2, keepdim=True)
    scale = (C // H) ** -0.5
    pairwise = ((q - m) @ (k - k.mean(2, keepdim=True)).mT * scale).softmax(-1)
    product = pairwise * (m @ k.mT * scale).softmax(-1)
    weights = product / product.sum(-1, keepdim=True)
    v = plain._heads(plain.value(x.flatten(2).mT))
    y = plain.out((weights @ v).transpose(1, 2).flatten(2)).mT.view_as(x)
    torch.testing.assert_close(plain(x), y)


def test_unwhitened_pairwise_is_scaled_dot_product_attention():
    module, x = module_of("all", pairwise="plain", unary=None, temperature=2.0), pixels()[0].float()
    tokens = x.flatten(2).mT
    q, k = (module._heads(t) for t in module.qk(tokens).chunk(2, -1))
    out = F.scaled_dot_product_attention(
        q, k, module._heads(module.value(tokens)), scale=2**-1.5 / 2
    )
    y = module.out(out.transpose(1, 2).flatten(2)).mT.view_as(x)
    torch.testing.assert_close(module(x), y)


# --- edges --------------------------------------------------------------------------------------


@pytest.mark.parametrize("unary", ["keys", None])
def test_without_keys_or_queries_there_is_nothing_and_no_gradient(unary):
    module = module_of("all", unary=unary)
    keys, queries = q_and_k()
    x = pixels()[0].float().requires_grad_()
    y = module(x, flat(keys)._replace(queries=flat(queries)))
    assert (y[1:] == 0).all()
    grads = torch.autograd.grad(y[1:].sum(), [x, *module.parameters()])
    assert all((grad == 0).all() for grad in grads)


def test_one_query_is_the_mean_of_the_keys():
    module, x = module_of("all", unary=None).double(), pixels()[0]
    keys, queries = q_and_k()
    y = module(x, flat(keys)._replace(queries=flat(queries)))[0].flatten(1)
    mean = module.value(x[0].flatten(1).T[keys[0]]).mean(0)
    torch.testing.assert_close(y[:, 5], module.out(mean))


def test_one_key_is_its_value_twice():
    module, x = module_of("all").double(), pixels()[0]
    y = module(x, FORMS["one key"][1])
    want = module.out(2 * module.value(x.flatten(2)[..., 9]))
    torch.testing.assert_close(y, want.view(B, C, 1, 1).expand_as(y))


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (13, 3)])
@pytest.mark.parametrize("selector", [None, RandomSelector(0.3), TopKSelector(0.3)])
def test_any_size(size, selector):
    module = DisentangledAttention2d(8, 2, selector=selector)
    y = module(torch.randn(2, 8, *size))
    assert y.shape == (2, 8, *size) and y.isfinite().all()


def test_empty_batch():
    assert DisentangledAttention2d(8, 2)(torch.randn(0, 8, 4, 4)).shape == (0, 8, 4, 4)


@pytest.mark.parametrize("form", ["one mask", "apart", "index of heads", "biased"])
def test_what_other_pixels_hold_changes_no_bit(form):
    """NaN where a pixel neither asks nor answers; gradients of x are finite as well."""
    module, x = module_of(form), pixels()[0].float()
    keys, queries = (with_heads(mask) for mask in FORMS[form][3:])
    unused = ~(keys | queries).any(1).view(B, 1, HEIGHT, WIDTH)
    poisoned = x.masked_fill(unused, float("nan")).requires_grad_()
    mask, bias = FORMS[form][1:3]
    y = module(poisoned, mask, bias)
    assert torch.equal(y, module(x, mask, bias))
    (grad,) = torch.autograd.grad(y.sum(), poisoned)
    assert grad.isfinite().all()


# --- dtypes -------------------------------------------------------------------------------------


def test_autocast_centres_before_it_casts():
    """What all pixels share is 8 times what tells them apart: a cast first would lose bits."""
    torch.manual_seed(0)
    module = DisentangledAttention2d(32, 2, unary=None)
    x = torch.randn(2, 32, 8, 8)
    mask = torch.rand(2, 8, 8) < 0.5
    with torch.no_grad():  # every value is channel 0, whole numbers: no rounding but the scores'
        module.value.weight.zero_()[:, 0] = 1.0
    exact = copy.deepcopy(module).double()
    x[:, 0] = torch.randint(-4, 5, (2, 8, 8)).float()

    def error(x: Tensor) -> float:
        with torch.autocast("cpu", torch.bfloat16):
            y = module(x, mask)
        return (y.double() - exact(x.double(), mask)).std().item()

    shared = 8 * torch.randn(32).view(1, 32, 1, 1)
    shared[:, 0] = 0
    assert error(x + shared) < 1.5 * error(x)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_mean_is_not_rounded_to_half_precision(dtype):
    """Between two neighbours of half precision, their differences from the mean are exact."""
    module = DisentangledAttention2d(2, 1, unary=None)
    step = torch.finfo(dtype).eps
    x = torch.ones(1, 2, 64, 64, dtype=dtype)
    x[:, :, ::2] += step
    centred, _ = module._centred(x.flatten(2).mT, None)
    assert torch.equal(centred.unique(), torch.tensor([-step / 2, step / 2], dtype=dtype))


# --- as a module --------------------------------------------------------------------------------


@pytest.mark.parametrize("selector", [TopKSelector(0.3), GumbelTopKSelector(0.3)])
@pytest.mark.parametrize("sparsity", ["qk", "q+k", "k"])
@pytest.mark.parametrize("pairwise", ["whitened", None])
def test_mask_heads_learn(selector, sparsity, pairwise):
    module = DisentangledAttention2d(8, 2, selector=selector, sparsity=sparsity, pairwise=pairwise)
    module(torch.randn(2, 8, 6, 6)).square().sum().backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_unselected_pixels_are_zero_and_formats_are_kept():
    module, mask = module_of("all"), masks(B, HEIGHT, WIDTH)
    x = pixels()[0].float()
    y = module(x, mask)
    assert y.is_contiguous()
    assert (y.permute(0, 2, 3, 1)[~mask] == 0).all()
    last = module(x.contiguous(memory_format=torch.channels_last), mask)
    assert last.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(last, y)


def test_swap_attention_finds_it():
    model = nn.Sequential(module_of("all", core="dense"))
    x = pixels()[0].float()
    y = model(x)
    assert [row[0] for row in swap_attention(model).swapped] == ["0"]
    assert isinstance(model[0].core, SparseAttentionCore)
    torch.testing.assert_close(model(x), y)
    assert unswap_attention(model) == ["0"]


@pytest.mark.parametrize("selector", [None, RandomSelector(0.5), TopKSelector(0.5)])
def test_compiles_in_one_graph(selector):
    module = DisentangledAttention2d(8, 2, selector=selector)
    compiled = torch.compile(copy.deepcopy(module), fullgraph=True, backend="aot_eager")
    x = torch.randn(1, 8, 6, 6)
    torch.testing.assert_close(compiled(x), module(x))
    compiled(x).square().sum().backward()


def test_export():
    module = DisentangledAttention2d(8, 2, selector=TopKSelector(0.5)).eval()
    x = torch.randn(1, 8, 6, 6)
    program = torch.export.export(module, (x,), strict=False)
    torch.testing.assert_close(program.module()(x), module(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.inference_mode()
def test_prepared_for_inference(dtype):
    module = nn.Sequential(module_of("all", selector=RandomSelector(0.5)))
    x = pixels()[0].float()
    y = prepare_for_inference(module, dtype)(x)
    assert y.dtype == dtype
    close = {"atol": 1e-5, "rtol": 1e-4} if dtype == torch.float32 else {"atol": 0.03, "rtol": 0.03}
    torch.testing.assert_close(y.float(), module(x), **close)


@pytest.mark.parametrize(
    ("arguments", "kind", "words"),
    [
        ({"channels": 8, "num_heads": 3}, ValueError, "num_heads: .* divisor .* got 3"),
        (
            {"channels": 8, "pairwise": True},
            ValueError,
            'pairwise: expected "whitened", .* got True',
        ),
        ({"channels": 8, "pairwise": None, "unary": None}, ValueError, "unary: .* got None"),
        ({"channels": 8, "unary": "none"}, ValueError, "unary: expected \"keys\", .* got 'none'"),
        ({"channels": 8, "temperature": 0}, ValueError, "temperature: .* above 0, got 0"),
        ({"channels": 8, "temperature": "1"}, TypeError, "temperature: .* got str"),
        ({"channels": 8, "sparsity": "q"}, ValueError, "sparsity: .* got 'q'"),
    ],
)
def test_bad_constructor_arguments(arguments, kind, words):
    with pytest.raises(kind, match=words) as caught:
        DisentangledAttention2d(**arguments)
    assert "\n" not in str(caught.value)
