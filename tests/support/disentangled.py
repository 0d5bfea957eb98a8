# SPDX-License-Identifier: BSD-3-Clause
"""What `DisentangledAttention2d` must give: loops over gathered tokens, and every form of a mask.

And eager PyTorch, whose errors say how near a result must be: the loops and dense cores, each with
the tokens in several orders.
"""

import copy

import torch
from oracle import dense_attention, dense_by_lse
from torch import Tensor

from maskattn_kernels import TokenIndex, select_tokens
from maskattn_kernels.nn import AttentionCore, DisentangledAttention2d, Selection

B, C, H, HEIGHT, WIDTH = 3, 24, 3, 5, 7
N = HEIGHT * WIDTH


def oracle(
    module: DisentangledAttention2d,
    x: Tensor,
    keys: Tensor,
    queries: Tensor,
    bias: Tensor | None = None,
) -> Tensor:
    """The textbook formulas on gathered tokens, both means subtracted; masks bool (B,heads,N)."""
    batch, channels, height, width = x.shape
    tokens = torch.stack([x[:, :, r, c] for r in range(height) for c in range(width)], 1)
    size = channels // module.num_heads
    wq, wk = (None, None) if module.qk is None else module.qk.weight.chunk(2)
    wv = module.value.weight
    images = []
    for b in range(batch):
        heads = []
        for h in range(module.num_heads):
            own = slice(h * size, (h + 1) * size)
            asking, answering = queries[b, h].nonzero()[:, 0], keys[b, h].nonzero()[:, 0]
            result = tokens.new_zeros(height * width, size)
            if module.pairwise and len(asking) and len(answering):
                q, k = tokens[b, asking] @ wq[own].T, tokens[b, answering] @ wk[own].T
                if module.pairwise == "whitened":
                    q, k = q - q.sum(0) / len(asking), k - k.sum(0) / len(answering)
                scores = q @ k.T / (module.temperature * size**0.5)
                if bias is not None:
                    scores = scores + bias[b, answering].to(scores.dtype)
                v = tokens[b, answering] @ wv[own].T
                result = result.index_add(0, asking, scores.softmax(1) @ v)
            pooled_over = answering if module.unary == "keys" else torch.arange(height * width)
            if module.unary and len(asking) and len(pooled_over):
                u = tokens[b, pooled_over] @ module.saliency.weight[h]
                if bias is not None:
                    u = u + bias[b, pooled_over].to(u.dtype)
                pooled = u.softmax(0) @ (tokens[b, pooled_over] @ wv[own].T)
                result = result.index_add(0, asking, pooled.expand(len(asking), size))
            if module.unselected == "mean" and len(asking):
                others = (~queries[b, h]).nonzero()[:, 0]
                mean = result[asking].sum(0) / len(asking)
                result = result.index_add(0, others, mean.expand(len(others), size))
            heads.append(result)
        images.append(torch.cat(heads, 1) @ module.out.weight.T)
    return torch.stack([torch.stack(images)[:, i] for i in range(height * width)], 2).view_as(x)


def masks(*shape: int, keep: float = 0.4, seed: int = 1) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < keep


def q_and_k() -> tuple[Tensor, Tensor]:
    """Keys and queries apart; an image without keys, one without queries, one with one query."""
    keys, queries = masks(B, N), masks(B, N, seed=2)
    keys[1] = False
    queries[2] = False
    queries[0] = False
    queries[0, 5] = True
    return keys, queries


def one_key() -> Tensor:
    keys = torch.zeros(B, N, dtype=torch.bool)
    keys[:, 9] = True
    return keys


def flat(mask: Tensor) -> Selection:
    return Selection(mask.view(-1, HEIGHT, WIDTH))


ALL = torch.ones(B, N, dtype=torch.bool)
BIAS = torch.randn(B, N, generator=torch.Generator().manual_seed(3))
KEYS, QUERIES = q_and_k()
PER_HEAD = masks(B, H, N)
# name: (constructor arguments, mask, key bias) as given; (keys, queries) as the oracle takes them.
FORMS = {
    "all": ({}, None, None, ALL, ALL),
    "one mask": ({}, masks(B, HEIGHT, WIDTH), None, masks(B, N), masks(B, N)),
    "keys": ({"sparsity": "k"}, KEYS, None, KEYS, ALL),
    "apart": ({}, flat(KEYS)._replace(queries=flat(QUERIES)), None, KEYS, QUERIES),
    "biased": ({}, masks(B, N), BIAS, masks(B, N), masks(B, N)),
    "one key": ({}, flat(one_key())._replace(queries=flat(ALL)), None, one_key(), ALL),
    "shared": ({}, masks(1, N), None, masks(1, N).expand(B, N), masks(1, N).expand(B, N)),
    "index": ({}, select_tokens(masks(B, N)), None, masks(B, N), masks(B, N)),
    "index of heads": ({}, select_tokens(PER_HEAD), None, PER_HEAD, PER_HEAD),
    "nothing": ({}, ~ALL, None, ~ALL, ~ALL),
    "no mean": ({"pairwise": "plain"}, masks(B, N), None, masks(B, N), masks(B, N)),
    "unary": ({"pairwise": None}, masks(B, N), None, masks(B, N), masks(B, N)),
    "pairwise": ({"unary": None}, masks(B, N), None, masks(B, N), masks(B, N)),
    "pooled over all": (
        {"unary": "all"}, flat(KEYS)._replace(queries=flat(QUERIES)), None, KEYS, QUERIES,
    ),
    "mean for others": (
        {"unselected": "mean"},
        flat(KEYS)._replace(queries=flat(QUERIES)),
        None,
        KEYS,
        QUERIES,
    ),
    "sharp": ({"temperature": 0.3}, masks(B, N), None, masks(B, N), masks(B, N)),
}  # fmt: skip


def module_of(form: str, **more: object) -> DisentangledAttention2d:
    torch.manual_seed(0)
    return DisentangledAttention2d(C, H, **{**FORMS[form][0], **more})


def pixels(shared: float = 2.0) -> tuple[Tensor, Tensor]:
    """x, with a component that all pixels share, so that whitening does something; and dy."""
    generator = torch.Generator().manual_seed(4)
    x, dy = torch.randn(2, B, C, HEIGHT, WIDTH, generator=generator, dtype=torch.float64)
    return x + shared, dy


def with_heads(mask: Tensor) -> Tensor:
    return mask if mask.dim() == 3 else mask.unsqueeze(1).expand(B, H, N)


def results(form: str, run, module: DisentangledAttention2d, dtype: torch.dtype) -> dict:
    """The output and every gradient; ``run(module, x, bias)``."""
    module = copy.deepcopy(module).to(dtype)
    # Not centred, gradients of the logits, which cancel, would meet a shared component: no rule
    # bounds what rounding leaves.
    x, dy = (t.to(dtype) for t in pixels(0.0 if module.pairwise == "plain" else 2.0))
    x.requires_grad_()
    bias = FORMS[form][2]
    leaves = {"x": x, **dict(module.named_parameters())}
    if bias is not None:
        bias = bias.to(torch.promote_types(dtype, torch.float32)).requires_grad_()
        leaves["key_bias"] = bias
    y = run(module, x, bias)
    found = torch.autograd.grad(y, list(leaves.values()), dy, allow_unused=True)
    grads = {
        n: torch.zeros_like(t) if g is None else g
        for (n, t), g in zip(leaves.items(), found, strict=True)
    }
    return {"out": y.detach(), **grads}


def by_module(form: str):
    return lambda module, x, bias: module(x, FORMS[form][1], bias)


def shuffled(length: int, seed: int | None) -> Tensor:
    if seed is None:
        return torch.arange(length)
    return torch.randperm(length, generator=torch.Generator().manual_seed(seed))


def by_loops(form: str, seed: int | None = None):
    """The oracle, its tokens in another order if there is a seed: another rounding."""
    keys, queries = (with_heads(mask) for mask in FORMS[form][3:])
    order = shuffled(N, seed)

    def run(module, x, bias):
        moved = x.flatten(2)[..., order].view_as(x)
        moved_bias = None if bias is None else bias[:, order]
        y = oracle(module, moved, keys[..., order], queries[..., order], moved_bias)
        return y.flatten(2)[..., order.argsort()].view_as(y)

    return run


class ByLse(torch.autograd.Function):
    """Dense attention with gradients from the stored out, as kernels must compute them."""

    @staticmethod
    def forward(ctx, query, key, value, key_mask, query_mask, key_bias):
        ctx.arguments = (query, key, value, key_mask, query_mask, key_bias, None)
        return dense_attention(*ctx.arguments)[0]

    @staticmethod
    def backward(ctx, dout):
        dlse = dout.new_zeros(dout.shape[:3])
        grads = dense_by_lse(*ctx.arguments, dout, dlse)[2:]
        return (*grads[:3], None, None, grads[3] if len(grads) > 3 else None)


class LseCore(AttentionCore):
    """`ByLse`, with the keys in another order if there is a seed."""

    def __init__(self, seed=None):
        super().__init__()
        self.seed = seed

    def forward(self, query, key, value, *, key_mask=None, query_mask=None, key_bias=None):
        keys, queries = (
            m.to_mask() if isinstance(m, TokenIndex) else m for m in (key_mask, query_mask)
        )
        order = shuffled(key.shape[2], self.seed)
        keys, key_bias = (t if t is None else t[..., order] for t in (keys, key_bias))
        return ByLse.apply(query, key[:, :, order], value[:, :, order], keys, queries, key_bias)
