# SPDX-License-Identifier: BSD-3-Clause
"""Modules under torch's transforms, exporters and loaders: learned masks, public tuples, meta."""

import importlib.util
import io
import warnings
from typing import Any

import numpy as np
import pytest
import torch
import torch.func as tf
from torch import Tensor, nn

from maskattn_kernels import masked_attention, select_tokens, swap_attention
from maskattn_kernels.models import MaskAttnUNet
from maskattn_kernels.nn import (
    GumbelSelector,
    LocalTopKSelector,
    MaskAttention2d,
    MaskedMultiheadAttention,
    MaskHead,
    RandomSelector,
    Selection,
    TopKSelector,
    make_selector,
)
from maskattn_kernels.segmentation.model.by_center import _centers
from maskattn_kernels.segmentation.model.grouping import group
from maskattn_kernels.segmentation.model.network import SegmentationNetwork
from maskattn_kernels.segmentation.model.targets import instance_targets

LEARNED = ("topk", "gumbel-topk", "local", "threshold", "gumbel")
SPARSITIES = ("qk", "q+k", "k")


def attention(selector: str, sparsity: str = "qk", **kwargs: Any) -> MaskAttention2d:
    selector = make_selector(selector, 0.5)
    return MaskAttention2d(8, 2, selector=selector, sparsity=sparsity, **kwargs).eval()


# Files


def saved_and_loaded(module: nn.Module, *args: Any) -> Any:
    """What an exported program gives after a way through a file."""
    file = io.BytesIO()
    torch.export.save(torch.export.export(module, args, strict=False), file)
    file.seek(0)
    return torch.export.load(file).module()(*args)


@pytest.mark.parametrize(
    ("task", "encoder"), [("semantic", "unet"), ("panoptic", "unet"), ("panoptic", "light")]
)
def test_exported_network_goes_through_a_file(task: str, encoder: str) -> None:
    sizes = {"width": 8, "depth": 2 if encoder == "unet" else None}
    network = SegmentationNetwork(5, things=[3, 4], task=task, encoder=encoder, **sizes).eval()
    image = torch.randint(256, (1, 3, 32, 32), dtype=torch.uint8)
    outputs, loaded = network(image), saved_and_loaded(network, image)
    assert type(loaded) is type(outputs)
    torch.testing.assert_close(loaded, outputs)


def test_exported_selection_goes_through_a_file() -> None:
    """Nested too: the selection of queries lies inside that of keys."""

    class Select(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = attention("topk", "q+k")

        def forward(self, x: Tensor) -> Selection | None:
            return self.attention.select(x)

    module, x = Select(), torch.randn(1, 8, 4, 4)
    selection, loaded = module(x), saved_and_loaded(module, x)
    assert isinstance(loaded, Selection) and isinstance(loaded.queries, Selection)
    torch.testing.assert_close(loaded, selection)


def test_public_tuples_load_without_pickled_code() -> None:
    x = torch.randn(1, 8, 4, 4)
    network = SegmentationNetwork(5, things=[3, 4], task="panoptic", width=8, depth=1).eval()
    outputs = network(torch.zeros(1, 3, 16, 16, dtype=torch.uint8))
    labels = torch.full((1, 16, 16), 3)
    tuples = {
        "index": select_tokens(torch.ones(1, 3, dtype=torch.bool)),
        "selection": attention("topk", "q+k").select(x),
        "outputs": outputs,
        "panoptic": group(outputs, [3, 4]),
        "targets": instance_targets(labels, labels, [3, 4]),
    }
    file = io.BytesIO()
    torch.save(tuples, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    assert {name: type(t) for name, t in loaded.items()} == {n: type(t) for n, t in tuples.items()}


needs_onnx = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("onnxscript", "onnxruntime")),
    reason="needs the packages onnx, onnxscript and onnxruntime",
)


@needs_onnx
@pytest.mark.parametrize("selector", ["random", *LEARNED])
def test_networks_with_a_dense_core_run_in_onnx(selector: str) -> None:
    """A checkpoint of the sparse core has the dense core's parameters, so this deploys it."""
    onnxruntime = importlib.import_module("onnxruntime")
    module, x = attention(selector, core="dense"), torch.randn(1, 8, 9, 7)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(module, (x,), dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())
    (out,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(out), module(x).detach(), rtol=1e-4, atol=1e-4)


# Selections


@pytest.mark.parametrize(("selector", "window"), [(TopKSelector, 6), (LocalTopKSelector, 3)])
def test_ties_go_to_the_first(selector: Any, window: int) -> None:
    """Of the image, or of each window, in row-major order."""
    logits = torch.zeros(6, 6)
    logits[4:, 4:] = 1
    kwargs = {"window": window} if selector is LocalTopKSelector else {}
    mask = selector(0.25, **kwargs)(logits[None, None]).mask[0]
    assert mask.sum() == 9
    cells = (t.unfold(0, window, window).unfold(1, window, window) for t in (mask, logits))
    chosen, logits = (t.reshape(-1, window * window) for t in cells)
    for own, values in zip(chosen, logits, strict=True):
        first = values.argsort(descending=True, stable=True)[: int(own.sum())]
        assert own[first].all()


def test_equal_heights_keep_the_order_of_their_places() -> None:
    center = torch.zeros(1, 1, 16, 16)
    spots = [(1, 1), (1, 9), (5, 5), (9, 1), (9, 13), (13, 9)]
    for y, x in spots:
        center[0, 0, y, x] = 0.5
    center[0, 0, 13, 1] = torch.tensor(0.5).nextafter(torch.tensor(1.0))
    heights, places = _centers(center, 0.1, 3, 5)
    assert places.tolist() == [[13 * 16 + 1, *(y * 16 + x for y, x in spots[:4])]]
    assert heights[0, 1:].eq(0.5).all()


# Transforms


@pytest.mark.parametrize("sparsity", SPARSITIES)
@pytest.mark.parametrize("selector", LEARNED)
def test_ensembles_and_per_sample_gradients(selector: str, sparsity: str) -> None:
    """vmap over the parameters of several models, and over the samples of one."""
    module, x = attention(selector, sparsity), torch.randn(3, 8, 4, 4)
    others = [attention(selector, sparsity) for _ in range(2)]
    params, buffers = tf.stack_module_state([module, *others])

    def loss(params: dict, buffers: dict, x: Tensor) -> Tensor:
        return tf.functional_call(module, (params, buffers), (x,)).square().sum()

    together = tf.vmap(tf.grad(loss), in_dims=(0, 0, None))(params, buffers, x)
    for i, one in enumerate((module, *others)):
        alone = tf.grad(loss)(dict(one.named_parameters()), dict(one.named_buffers()), x)
        torch.testing.assert_close({n: g[i] for n, g in together.items()}, alone)
    own = dict(module.named_parameters()), dict(module.named_buffers())
    per_sample = tf.vmap(tf.grad(loss), in_dims=(None, None, 0))(*own, x[:, None])
    for i in range(3):
        alone = tf.grad(loss)(*own, x[i : i + 1])
        torch.testing.assert_close({n: g[i] for n, g in per_sample.items()}, alone)


TRANSFORMS = {
    "grad": lambda f: tf.grad(lambda q: f(q).sum()),
    "vjp": lambda f: lambda q: tf.vjp(f, q)[1](torch.ones_like(q))[0],
    "jacrev": tf.jacrev,
    "per_sample": lambda f: tf.vmap(tf.grad(lambda q: f(q[None]).sum())),
    "vmap": lambda f: tf.vmap(lambda q: f(q[None])),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_compiled_transforms(name: str) -> None:
    """torch.compile around torch.func: the gradients break the graph, and are right."""
    mask, q = torch.tensor([[True, False, True, True]]), torch.randn(2, 1, 4, 8)

    def f(q: Tensor) -> Tensor:
        return masked_attention(q, q, q, key_mask=mask, query_mask=mask).sin()

    transformed = TRANSFORMS[name](f)
    compiled = torch.compile(transformed, backend="aot_eager", fullgraph=name == "vmap")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the graph break
        torch.testing.assert_close(compiled(q), transformed(q))


TRACED = {
    "op": lambda: lambda q: masked_attention(q, q, q, key_mask=q[:, 0, :, 0] > 0),
    "random": lambda: attention("random"),
    **{name: (lambda name=name: attention(name)) for name in LEARNED},
    "unet": lambda: MaskAttnUNet(width=8, depth=1).eval(),
}


@pytest.mark.parametrize("name", TRACED)
def test_jit_trace(name: str) -> None:
    """Deprecated, and still what converters use. It checks its own trace, and saves it."""
    shape = {"op": (1, 2, 6, 8), "unet": (1, 3, 16, 16)}.get(name, (1, 8, 4, 4))
    function, x = TRACED[name](), torch.randn(shape)
    # With gradients, learned masks add a function that a trace cannot hold.
    with warnings.catch_warnings(), torch.set_grad_enabled(name not in LEARNED):
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(function, (x,))
        file = io.BytesIO()
        torch.jit.save(traced, file)
        file.seek(0)
        torch.testing.assert_close(torch.jit.load(file)(x), function(x))


# Construction


def reset_children_first(module: nn.Module) -> None:
    for child in reversed(list(module.modules())):
        if hasattr(child, "reset_parameters"):
            child.reset_parameters()


def reset_parents_first(module: nn.Module) -> None:
    for child in module.modules():
        own = (*child.parameters(recurse=False), *child.buffers(recurse=False))
        if own:
            child.reset_parameters()


@pytest.mark.parametrize("reset", [reset_children_first, reset_parents_first])
@pytest.mark.parametrize(
    "make",
    [
        lambda: MaskedMultiheadAttention(16, 4, kdim=8),
        lambda: MaskedMultiheadAttention(16, 4),
        lambda: MaskAttention2d(16, selector=GumbelSelector(0.1), joins_previous=True),
        lambda: MaskHead(4, start=0.1),
    ],
)
def test_meta_modules_are_initialised_by_reset_parameters(make: Any, reset: Any) -> None:
    """As sharded training makes a model: on meta, to_empty, reset_parameters of each module."""
    torch.manual_seed(0)
    right = make()
    with torch.device("meta"):
        module = make()
    module.to_empty(device="cpu")
    for t in (*module.parameters(), *module.buffers()):
        t.detach().fill_(torch.nan)
    reset(module)
    for name, t in module.state_dict().items():
        if isinstance(t, Tensor):
            expected = right.state_dict()[name]
            assert t.isfinite().all() and t.std(correction=0) < 2 * expected.std(correction=0) + 0.3
            if "temperature" in name or "carry" in name or name.endswith("conv.bias"):
                assert torch.equal(t, expected), name


def test_same_seed_same_weights_as_multihead_attention() -> None:
    for kwargs in ({}, {"kdim": 8, "vdim": 4}, {"bias": False}):
        torch.manual_seed(3)
        theirs = nn.MultiheadAttention(16, 4, **kwargs)
        torch.manual_seed(3)
        ours = MaskedMultiheadAttention(16, 4, **kwargs)
        torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), rtol=0, atol=0)


def test_numpy_numbers_are_numbers() -> None:
    two, half = np.int64(2), np.float32(0.5)
    module = MaskAttention2d(np.int64(16), two, selector=RandomSelector(half, seed=np.int64(3)))
    assert type(module.channels) is type(module.selector.seed) is int
    MaskAttention2d(np.int32(16), selector=TopKSelector(np.float16(0.5), min_keep=two))
    LocalTopKSelector(0.5, window=two)
    MaskHead(np.int64(4), start=half)
    MaskedMultiheadAttention(np.int64(16), two, dropout=half, kdim=np.int64(8))
    MaskAttnUNet(width=np.int64(8), depth=np.int64(1), classes=two, seed=two)
    q = torch.randn(1, 1, 4, 8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for scale in (half, np.float16(0.5), np.float64(0.5)):
            assert torch.equal(
                masked_attention(q, q, q, scale=scale), masked_attention(q, q, q, scale=0.5)
            )
    with pytest.raises(TypeError, match=r"^num_heads: expected a positive int, got bool_?$"):
        MaskAttention2d(16, np.bool_(True))


def test_seed_is_saved_on_the_cpu() -> None:
    with torch.device("meta"):
        state = RandomSelector(0.5, seed=7).state_dict()
    selector = RandomSelector(0.5)
    selector.load_state_dict(state)
    assert selector.seed == 7


# Faults that are found where they are made


@pytest.mark.parametrize(
    "make",
    [
        lambda backend: MaskAttention2d(8, backend=backend),
        lambda backend: MaskedMultiheadAttention(8, 2, backend=backend),
        lambda backend: MaskAttnUNet(width=8, depth=1, backend=backend),
        lambda backend: swap_attention(nn.Sequential(nn.Linear(2, 2)), backend=backend),
    ],
)
def test_backend_is_checked_at_construction(make: Any) -> None:
    make("reference")
    make(None)
    with pytest.raises(ValueError, match=r"^backend: expected None or one of .*, got 'cpuu'$"):
        make("cpuu")
    with pytest.raises(TypeError, match=r"^backend: expected None or one of .*, got int$"):
        make(3)


@pytest.mark.parametrize("field", ["key_bias", "score"])
def test_selection_of_another_size(field: str) -> None:
    module, x = attention("topk"), torch.randn(2, 8, 4, 4)
    selection = module.select(x)
    for bad in (torch.zeros(2, 4, 5), torch.zeros(3, 4, 4), torch.zeros(2, 15)):
        with pytest.raises(ValueError, match=rf"^{field}: expected shape \(2, 4, 4\)"):
            module(x, selection._replace(**{field: bad}))


@pytest.mark.parametrize("argument", ["key_mask", "query_mask"])
def test_tensors_of_inference_mode(argument: str) -> None:
    """What cannot be kept for the backward pass is named."""
    with torch.inference_mode():
        made = select_tokens(torch.ones(1, 4, dtype=torch.bool))
        bias = torch.zeros(1, 4)
    q = torch.randn(1, 1, 4, 8)
    masked_attention(q, q, q, **{argument: made})
    q.requires_grad_()
    with pytest.raises(ValueError, match=rf"^{argument}: expected a tensor made outside of inf"):
        masked_attention(q, q, q, **{argument: made})
    masked_attention(q, q, q, key_bias=bias).sum().backward()


def test_scale_beyond_the_scores_is_refused() -> None:
    q = torch.randn(1, 1, 4, 8)
    for scale in (1e39, -1e39, np.float64(1e300)):
        with pytest.raises(ValueError, match=r"^scale: expected a finite number up to 3.4e\+38"):
            masked_attention(q, q, q, scale=scale)
    masked_attention(q.double(), q.double(), q.double(), scale=1e39)
