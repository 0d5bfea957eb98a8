# SPDX-License-Identifier: BSD-3-Clause
"""MaskAttention2d and its cores."""

import copy

import pytest
import torch
from harness import ran_on
from torch import nn

from maskattn_kernels import select_tokens
from maskattn_kernels.nn import (
    AttentionCore,
    DenseAttentionCore,
    IdentityAttentionCore,
    MaskAttention2d,
    RandomSelector,
    Selection,
    Selector,
    SparseAttentionCore,
    make_core,
)

CORES = ["sparse", "dense", "sdpa"]


def error(got: torch.Tensor, exact: torch.Tensor) -> float:
    return (got.double() - exact).abs().max().item() if exact.numel() else 0.0


def assert_as_good_as(got: torch.Tensor, baseline: torch.Tensor, exact: torch.Tensor) -> None:
    """`got` is at most 4 times as far from float64 as the baseline of its dtype, or a rounding."""
    rounding = torch.finfo(got.dtype).eps * exact.abs().max().item()
    assert got.isfinite().all()
    assert error(got, exact) <= 4 * max(error(baseline, exact), rounding)


def by_definition(q, k, v, key_mask, query_mask, key_bias):
    """Masked attention in float64, one query at a time; masks and bias (B,H,N)."""
    q, k, v, key_bias = (t.double() for t in (q, k, v, key_bias))
    out = torch.zeros_like(q)
    for b, h, i in query_mask.nonzero().tolist():
        chosen = key_mask[b, h]
        if chosen.any():
            scores = k[b, h, chosen] @ q[b, h, i] / q.shape[3] ** 0.5 + key_bias[b, h, chosen]
            out[b, h, i] = torch.softmax(scores, 0) @ v[b, h, chosen]
    return out


# --- cores --------------------------------------------------------------------------------------


@pytest.mark.parametrize("core", CORES)
@pytest.mark.parametrize("as_index", [False, True], ids=["mask", "index"])
@pytest.mark.parametrize("key_keep", [None, 0.0, 0.5])
@pytest.mark.parametrize("query_keep", [None, 0.5])
@pytest.mark.parametrize("biased", [False, True], ids=["plain", "biased"])
def test_cores_keep_the_contract(core, as_index, key_keep, query_keep, biased):
    torch.manual_seed(0)
    q = torch.randn(2, 3, 7, 8)
    k, v = torch.randn(2, 2, 3, 9, 8)
    key_mask = torch.rand(2, 3, 9) < (1.0 if key_keep is None else key_keep)
    query_mask = torch.rand(2, 3, 7) < (1.0 if query_keep is None else query_keep)
    key_bias = torch.randn(2, 3, 9) if biased else torch.zeros(2, 3, 9)
    exact = by_definition(q, k, v, key_mask, query_mask, key_bias)

    given = {}
    if key_keep is not None:
        given["key_mask"] = select_tokens(key_mask) if as_index else key_mask
    if query_keep is not None:
        given["query_mask"] = select_tokens(query_mask) if as_index else query_mask
    if biased:
        given["key_bias"] = key_bias
    out = make_core(core)(q, k, v, **given)
    assert out.shape == q.shape
    assert error(out, exact) < 1e-5
    assert (out[~query_mask] == 0).all()


@pytest.mark.parametrize("core", CORES)
def test_core_gradients(core):
    """Of dq, dk, dv and dbias, with an image where nothing is selected: finite, and right."""
    torch.manual_seed(0)
    tensors = [*torch.randn(3, 2, 1, 6, 4), torch.randn(2, 6)]
    mask = torch.rand(2, 6) < 0.5
    mask[1] = False
    given = {"key_mask": mask, "query_mask": mask}

    def gradients(core, dtype):
        q, k, v, bias = leaves = [t.to(dtype).requires_grad_() for t in tensors]
        out = core(q, k, v, **given, key_bias=bias)
        return torch.autograd.grad((out * torch.arange(4)).sum(), leaves)

    exact = gradients(DenseAttentionCore(), torch.float64)
    for got, want in zip(gradients(make_core(core), torch.float32), exact, strict=True):
        assert error(got, want) < 1e-5
        assert (got[1] == 0).all()


def test_identity_core_gives_value():
    q, k, v = torch.randn(3, 1, 2, 5, 4)
    assert make_core("identity")(q, k, v, key_mask=torch.zeros(1, 5).bool()) is v


def test_core_of_ones_own():
    core = DenseAttentionCore()
    assert make_core(core) is core
    assert MaskAttention2d(4, core=core).core is core
    with pytest.raises(NotImplementedError, match="forward"):
        AttentionCore()(None, None, None)


@pytest.mark.parametrize(
    ("arguments", "kind", "words"),
    [
        (("fused",), ValueError, "core: expected one of .* got 'fused'"),
        ((None,), TypeError, "core: .* got NoneType"),
        ((DenseAttentionCore,), TypeError, "core: .* got type"),
        (("dense", "cpu"), ValueError, "backend: expected None with core='dense', got 'cpu'"),
    ],
)
def test_make_core_refuses(arguments, kind, words):
    with pytest.raises(kind, match=words):
        make_core(*arguments)


# --- MaskAttention2d ----------------------------------------------------------------------------


def make_pair(channels=16, num_heads=2, **arguments):
    """The same module with the dense and with the sparse core."""
    torch.manual_seed(0)
    dense = MaskAttention2d(channels, num_heads, core="dense", **arguments)
    nn.init.normal_(dense.norm.weight)
    nn.init.normal_(dense.norm.bias)
    if dense.proj is not None:  # zero at first
        nn.init.normal_(dense.proj.weight)
    sparse = MaskAttention2d(channels, num_heads, core="sparse", **arguments)
    sparse.load_state_dict(dense.state_dict(), strict=True)
    return dense, sparse


@pytest.mark.parametrize("num_heads", [1, 2, 4])
@pytest.mark.parametrize("sparsity", ["qk", "k"])
@pytest.mark.parametrize("order", ["after", "before"])
def test_equals_the_definition(num_heads, sparsity, order):
    """Against a loop: heads are groups of channels, tokens are pixels in row-major order."""
    dense, sparse = make_pair(8, num_heads, sparsity=sparsity, norm=order)
    x, mask = torch.randn(2, 8, 3, 5), torch.rand(2, 3, 5) < 0.5
    norm = copy.deepcopy(dense.norm).double()
    heads = (2, 15, num_heads, 8 // num_heads)
    tokens = torch.stack([x[:, :, row, column] for row in range(3) for column in range(5)], 1)
    weights = dense.qkv.weight.double().chunk(3)
    read = tokens.double() if order == "after" else norm(tokens.double())
    q, k, v = ((read @ w.T).view(heads).transpose(1, 2) for w in weights)
    selected = mask.view(2, 1, 15).expand(2, num_heads, 15)
    asking = selected if sparsity == "qk" else torch.ones_like(selected)
    out = by_definition(q, k, v, selected, asking, torch.zeros(2, num_heads, 15))
    out = out.transpose(1, 2).reshape(2, 15, 8)
    if dense.proj is None:
        y = norm(tokens.double() + out)
    else:
        y = tokens.double() + out @ dense.proj.weight.double().T
    exact = torch.stack([y[:, i] for i in range(15)], 2).view(2, 8, 3, 5).detach()
    with torch.no_grad():
        assert_as_good_as(sparse(x, mask), dense(x, mask), exact)
        assert error(dense(x, mask), exact) < 1e-5


def test_norm_before_begins_as_the_identity_and_learns():
    attention = MaskAttention2d(8, norm="before")
    x = torch.randn(2, 8, 3, 5)
    y = attention(x)
    assert torch.equal(y, x)
    y.square().sum().backward()
    assert attention.proj.weight.grad.abs().sum() > 0
    with pytest.raises(ValueError, match="got 'both'"):
        MaskAttention2d(8, norm="both")


@pytest.mark.parametrize("sparsity", ["qk", "k"])
@pytest.mark.parametrize("size", [(1, 1), (6, 4), (7, 5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sparse_core_is_as_exact_as_the_dense_one(sparsity, size, dtype):
    """Output and every gradient, against float64."""
    dense, sparse = make_pair(sparsity=sparsity)
    x, weight = torch.randn(2, 2, 16, *size).to(dtype)
    mask = torch.rand(2, *size) < 0.5
    mask[1] = False

    def results(module, dtype):
        module = copy.deepcopy(module).to(dtype)
        x_leaf = x.to(dtype).requires_grad_()
        y = module(x_leaf, mask)
        leaves = [x_leaf, *module.parameters()]
        return [y.detach(), *torch.autograd.grad((y * weight.to(dtype)).sum(), leaves)]

    exact = results(dense, torch.float64)
    for got, base, want in zip(results(sparse, dtype), results(dense, dtype), exact, strict=True):
        assert got.dtype == dtype
        assert_as_good_as(got, base, want)


def test_unreached_pixels_are_the_norm_of_the_input():
    _, attention = make_pair()
    x, mask = torch.randn(1, 16, 4, 4), torch.rand(1, 4, 4) < 0.5
    normed = attention.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    unselected = ~mask.expand(16, 4, 4)
    assert torch.equal(attention(x, mask)[0][unselected], normed[0][unselected])
    assert torch.equal(attention(x, torch.zeros_like(mask)), normed)


@pytest.mark.parametrize("core", [*CORES, "identity"])
def test_memory_format_is_kept(core):
    attention = MaskAttention2d(8, 2, selector=RandomSelector(0.5), core=core)
    x = torch.randn(2, 8, 5, 6)
    y = attention(x)
    assert y.is_contiguous()
    y_last = attention(x.contiguous(memory_format=torch.channels_last))
    assert y_last.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(y, y_last)


def test_channels_last_makes_no_copies():
    """Around the core, a feature map is only copied to turn another memory format."""
    attention = MaskAttention2d(8, 2, core="identity")

    def copies(x):
        with torch.no_grad(), torch.profiler.profile(record_shapes=True) as profile:
            attention(x)
        return [
            event
            for event in profile.events()
            if event.name == "aten::copy_"
            and torch.Size(event.input_shapes[0]).numel() >= x.numel()
        ]

    x = torch.randn(2, 8, 16, 16)
    assert len(copies(x)) == 2
    assert not copies(x.contiguous(memory_format=torch.channels_last))


def test_all_ways_to_give_a_mask():
    _, attention = make_pair()
    x, mask = torch.randn(2, 16, 4, 6), torch.rand(2, 4, 6) < 0.5
    y = attention(x, mask)
    assert torch.equal(y, attention(x, mask[:, None]))
    assert torch.equal(y, attention(x, mask.flatten(1)))
    assert torch.equal(y, attention(x, select_tokens(mask.flatten(1))))
    shared = mask[:1]
    assert torch.equal(attention(x, shared), attention(x, shared.expand(2, 4, 6)))
    assert torch.equal(attention(x), attention(x, torch.ones_like(mask)))


def test_key_bias_shapes_and_gradient():
    dense, sparse = make_pair()
    x, mask = torch.randn(2, 16, 4, 6), torch.rand(2, 4, 6) < 0.5
    bias = torch.randn(2, 4, 6, requires_grad=True)
    y = sparse(x, mask, bias)
    assert not torch.allclose(y, sparse(x, mask))
    assert torch.equal(y, sparse(x, mask, bias[:, None]))
    assert torch.equal(y, sparse(x, mask, bias.flatten(1)))
    weight = torch.randn_like(y)
    (got,) = torch.autograd.grad((y * weight).sum(), bias)
    (want,) = torch.autograd.grad((dense(x, mask, bias) * weight).sum(), bias)
    torch.testing.assert_close(got, want)
    assert (got[~mask] == 0).all()
    assert (got[mask] != 0).any()


def test_selector_draws_and_its_bias_arrives():
    class Scored(Selector):
        def __init__(self):
            super().__init__()
            self.score = nn.Conv2d(16, 1, 1)

        def forward(self, features):
            scores = self.score(features).squeeze(1)
            return Selection(scores > scores.median(), scores)

    _, attention = make_pair()
    attention.selector = Scored()
    x = torch.randn(2, 16, 4, 6)
    selection = attention.select(x)
    mask, bias = selection.mask, selection.key_bias
    y = attention(x)
    assert torch.equal(y, attention(x, mask, bias))
    (y * torch.randn_like(y)).sum().backward()
    assert attention.selector.score.weight.grad.abs().sum() > 0


def test_masks_survive_a_checkpoint():
    saved = MaskAttention2d(8, selector=RandomSelector(0.5, seed=7))
    loaded = MaskAttention2d(8, selector=RandomSelector(0.5, seed=8))
    x = torch.randn(3, 8, 4, 4)
    loaded.load_state_dict(saved.state_dict())
    assert torch.equal(saved(x), loaded(x))


def test_state_dict_has_the_parameters_alone():
    names = {
        core: list(MaskAttention2d(8, core=core).state_dict()) for core in [*CORES, "identity"]
    }
    assert all(n == ["qkv.weight", "norm.weight", "norm.bias"] for n in names.values())


def test_empty_batch():
    assert MaskAttention2d(8)(torch.randn(0, 8, 4, 4), torch.zeros(0, 4, 4).bool()).shape[0] == 0


def test_compiles_in_one_graph():
    attention = MaskAttention2d(8, 2, selector=RandomSelector(0.5)).eval()
    x = torch.randn(1, 8, 6, 6).contiguous(memory_format=torch.channels_last)
    compiled = torch.compile(attention, fullgraph=True, backend="aot_eager")
    y = compiled(x)
    torch.testing.assert_close(y, attention(x))
    y.square().sum().backward()
    assert attention.qkv.weight.grad.isfinite().all()


def test_autocast():
    dense, sparse = make_pair()
    x, mask = torch.randn(1, 16, 6, 6), torch.rand(1, 6, 6) < 0.5
    with torch.autocast("cpu", torch.bfloat16):
        y = sparse(x, mask)
    torch.testing.assert_close(y.float(), dense(x, mask), atol=0.05, rtol=0.05)


def test_backend_is_handed_down():
    attention = MaskAttention2d(8, backend="reference")
    with ran_on("reference"):
        attention(torch.randn(1, 8, 2, 2))


@pytest.mark.parametrize(
    ("arguments", "kind", "words"),
    [
        ({"channels": 8.0}, TypeError, "channels: expected a positive int, got float"),
        ({"channels": 0}, ValueError, "channels: expected a positive int, got 0"),
        ({"channels": 8, "num_heads": 3}, ValueError, "num_heads: .* divisor .* got 3"),
        ({"channels": 1024, "num_heads": 2}, ValueError, "num_heads: expected at least 4"),
        ({"channels": 8, "sparsity": "q"}, ValueError, "sparsity: .* got 'q'"),
        ({"channels": 8, "selector": 0.5}, TypeError, "selector: .* got float"),
        ({"channels": 8, "core": "flash"}, ValueError, "core: .* got 'flash'"),
    ],
)
def test_bad_constructor_arguments(arguments, kind, words):
    with pytest.raises(kind, match=words):
        MaskAttention2d(**arguments)


MASK = torch.ones(2, 4, 6, dtype=torch.bool)


@pytest.mark.parametrize(
    ("arguments", "kind", "words"),
    [
        (("x",), TypeError, "x: expected a Tensor, got str"),
        ((torch.randn(2, 4, 6),), ValueError, r"x: expected shape \(B, 8, H, W\), got \(2, 4, 6\)"),
        ((torch.randn(2, 4, 4, 6),), ValueError, r"x: .* got \(2, 4, 4, 6\)"),
        ((torch.ones(2, 8, 4, 6).int(),), TypeError, "x: .* got torch.int32"),
        ((None, MASK.float()), TypeError, "mask: .* got dtype torch.float32"),
        ((None, MASK.to(torch.uint8)), TypeError, "mask: .* got dtype torch.uint8"),
        ((None, [True]), TypeError, "mask: .* got list"),
        ((None, MASK.mT), ValueError, r"mask: .* got \(2, 6, 4\)"),
        ((None, MASK[:1].expand(3, 4, 6)), ValueError, r"mask: .* got \(3, 4, 6\)"),
        ((None, MASK.to("meta")), ValueError, "mask: expected device cpu as x, got meta"),
        ((None, None, torch.randn(2, 4, 6)), ValueError, "key_bias: .* got no mask"),
        ((None, MASK, MASK), TypeError, "key_bias: .* got dtype torch.bool"),
        ((None, MASK, torch.randn(2, 4)), ValueError, r"key_bias: .* got \(2, 4\)"),
    ],
)
def test_bad_inputs(arguments, kind, words):
    x, *rest = arguments
    x = torch.randn(2, 8, 4, 6) if x is None else x
    with pytest.raises(kind, match=words) as caught:
        MaskAttention2d(8)(x, *rest)
    assert "\n" not in str(caught.value)


def test_repr_says_what_it_is():
    text = repr(MaskAttention2d(8, 2, selector=RandomSelector(0.5, 3), backend="reference"))
    for words in ("8, num_heads=2, sparsity='qk'", "keep=0.5, seed=3", "backend=reference"):
        assert words in text
    assert isinstance(MaskAttention2d(8).core, SparseAttentionCore)
    assert isinstance(MaskAttention2d(8, core="identity").core, IdentityAttentionCore)
