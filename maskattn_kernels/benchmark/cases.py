# SPDX-License-Identifier: BSD-3-Clause
"""The cases: one table for ``maskattn bench`` and ``pytest bench``."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property

import torch

__all__ = [
    "DTYPES",
    "FORWARD",
    "MODES",
    "SHAPES",
    "TRAIN",
    "Attention",
    "Case",
    "Inputs",
    "few_queries",
    "grid",
    "make_inputs",
    "make_mask",
]

#: (tokens, head_dim) of the six attention layers of the published network at 128 x 128.
SHAPES = ((16384, 64), (4096, 64), (4096, 128), (1024, 128), (1024, 256), (256, 256))
#: Mask modes as `maskattn_kernels.nn` spells them; a case has one mask, so that "q+k" is not here.
MODES = ("k", "qk")
KEEPS = (0.5, 0.25, 0.1)
DTYPES = ("float32", "bfloat16")
FORWARD, TRAIN = "forward", "forward+backward"
PASSES = (FORWARD, TRAIN)
#: One way to compute the answer, from (query, key, value, mask, mode).
Attention = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, str], torch.Tensor]
#: Longest sequence that is also measured with a batch of 8 on a device.
MAX_BATCHED_TOKENS = {"cpu": 4096, "cuda": 16384}


@dataclass(frozen=True)
class Case:
    """One cell of the grid: ``batch`` images, ``keep`` of the tokens selected at random, one head.

    Attributes:
        tokens: N, the number of tokens of queries and of keys.
        head_dim: D.
        batch: B; every item has its own mask with the same number of selected tokens.
        mode: ``"k"`` = a mask for keys only, ``"qk"`` = one mask for queries and keys.
        keep: selected fraction of the tokens.
        dtype: name of a torch dtype.
        phase: ``"forward"`` (no grad) or ``"forward+backward"`` (gradients of q, k and v).
        device: type of the torch device, ``"cpu"`` or ``"cuda"``.
        queries: number of query tokens of a case of `few_queries`; 0 = as many as keys.
        group: number of query heads that share the one key head.
    """

    tokens: int
    head_dim: int
    batch: int = 1
    mode: str = "k"
    keep: float = 0.25
    dtype: str = "float32"
    phase: str = FORWARD
    device: str = "cpu"
    queries: int = 0
    group: int = 1

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"mode: expected one of {', '.join(MODES)}, got {self.mode!r}")

    @property
    def name(self) -> str:
        """Short unique name, fit for a test id."""
        short = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}[self.dtype]
        phase = "fwd" if self.phase == FORWARD else "fwdbwd"
        size = f"N{self.tokens}-D{self.head_dim}-B{self.batch}"
        if self.queries:
            size = f"Q{self.queries}x{self.group}-{size}"
        return f"{size}-{self.mode}-keep{self.keep:g}-{short}-{phase}"

    @property
    def torch_dtype(self) -> torch.dtype:
        return getattr(torch, self.dtype)

    @property
    def trains(self) -> bool:
        return self.phase == TRAIN

    @property
    def selected_keys(self) -> int:
        """Number of selected tokens of each item: at least one."""
        return max(1, round(self.keep * self.tokens))

    @property
    def live_queries(self) -> int:
        """Number of query rows that have an output: all rows if only keys are masked."""
        return self.selected_keys if self.mode == "qk" else self.query_rows

    @property
    def query_rows(self) -> int:
        """Number of query rows of an item, in all heads."""
        return self.group * (self.queries or self.tokens)

    @property
    def flops(self) -> int:
        """Operations that every implementation needs: 4 n_q n_k D forward, 10 n_q n_k D backward.

        The backward count includes the recomputation of the scores, which every method that keeps
        no N x N tensor needs.
        """
        pairs = self.batch * self.live_queries * self.selected_keys
        return (14 if self.trains else 4) * pairs * self.head_dim

    @property
    def bytes(self) -> int:
        """Bytes that every implementation moves: selected rows in, dense zero-filled results out.

        Forward reads n_q + 2 n_k rows and writes N_q; backward reads them again with dout, and
        writes three dense gradients.
        """
        row = self.head_dim * torch.empty(0, dtype=self.torch_dtype).element_size()
        rows = self.live_queries + 2 * self.selected_keys + self.query_rows
        if self.trains:
            rows += 3 * self.live_queries + 2 * self.selected_keys
            rows += self.query_rows + 2 * self.tokens
        return self.batch * (rows * row + self.tokens)


@dataclass(frozen=True)
class Inputs:
    """Tensors of one case; all peers share them, and none writes to them."""

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    mask: torch.Tensor
    dout: torch.Tensor

    @cached_property
    def operands(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return self.query, self.key, self.value


def make_mask(batch: int, tokens: int, selected: int, seed: int = 0) -> torch.Tensor:
    """Draw a scattered mask with exactly ``selected`` True tokens in each row.

    Returns:
        bool tensor of shape (batch, tokens).
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.rand(batch, tokens, generator=generator).argsort(dim=1)
    return torch.zeros(batch, tokens, dtype=torch.bool).scatter_(1, order[:, :selected], True)


def make_inputs(case: Case, seed: int = 0) -> Inputs:
    """Seeded normal q, k, v, dout of shape (B, H, N, D); q, k, v have grad if it trains."""
    generator = torch.Generator().manual_seed(seed)
    of_keys = (case.batch, 1, case.tokens, case.head_dim)
    of_queries = (case.batch, case.group, case.queries or case.tokens, case.head_dim)
    shapes = (of_queries, of_keys, of_keys, of_queries)
    q, k, v, dout = (torch.randn(s, generator=generator).to(case.torch_dtype) for s in shapes)
    mask = make_mask(case.batch, case.tokens, case.selected_keys, seed)
    q, k, v, mask, dout = (t.to(case.device) for t in (q, k, v, mask, dout))
    for t in (q, k, v):
        t.requires_grad_(case.trains)
    return Inputs(q, k, v, mask, dout)


def _product(
    shapes: Iterable[tuple[int, int]],
    batches: Iterable[int],
    keeps: Iterable[float],
    dtypes: Iterable[str],
    device: str,
) -> list[Case]:
    return [
        Case(tokens, head_dim, batch, mode, keep, dtype, phase, device)
        for batch in batches
        for tokens, head_dim in shapes
        if batch == 1 or tokens <= MAX_BATCHED_TOKENS[device]
        for dtype in dtypes
        for mode in MODES
        for keep in keeps
        for phase in PASSES
    ]


def few_queries(dtypes: Iterable[str] = DTYPES) -> list[Case]:
    """Few queries over 16,384 keys: 1, 8, and 8 heads of 1 that share a key head.

    Args:
        dtypes: names of torch dtypes.

    Example:
        >>> few_queries(["float32"])[0].name
        'Q1x1-N16384-D64-B1-k-keep1-fp32-fwd'
    """
    return [
        Case(16384, head_dim, keep=keep, dtype=dtype, queries=queries, group=group)
        for dtype in dtypes
        for queries, group in ((1, 1), (8, 1), (1, 8))
        for head_dim in (64, 128)
        for keep in (1.0, 0.25)
    ]


def grid(name: str, dtypes: Iterable[str] = DTYPES, device: str = "cpu") -> list[Case]:
    """The cases of a named grid.

    Args:
        name: ``"full"`` (264 cases with two dtypes on a CPU), ``"small"`` (keep 0.25; one image, or
            eight on a GPU, which one does not fill) or ``"quick"`` (two shapes).
        dtypes: names of torch dtypes.
        device: "cpu" or "cuda".

    Example:
        >>> len(grid("full"))
        264
        >>> grid("quick", ["float32"])[0].name
        'N4096-D64-B1-k-keep0.25-fp32-fwd'
    """
    dtypes = tuple(dtypes)
    usual_batch = 8 if device == "cuda" else 1
    if name == "full":
        return _product(SHAPES, (1, 8), KEEPS, dtypes, device)
    if name == "small":
        return _product(SHAPES, (usual_batch,), (0.25,), dtypes, device)
    if name == "quick":
        return _product(((4096, 64), (1024, 128)), (usual_batch,), (0.25,), dtypes, device)
    raise ValueError(f"grid: got {name!r}, expected 'quick', 'small' or 'full'")
