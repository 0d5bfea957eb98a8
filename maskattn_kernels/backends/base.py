# SPDX-License-Identifier: BSD-3-Clause
"""What every backend is: a name, the reasons why it cannot run a call, and three registered ops.

The ops of backend `X` are `maskattn::X_select_tokens`, `maskattn::X_fwd` and `maskattn::X_bwd`.
Their schemas and these conventions are the same for all backends, so that `ops.py` writes fakes and
gradients only once. A backend may bring more, which list the tokens of masks themselves and give
the same bits: `maskattn::X_infer`, select_tokens and fwd in one call, and `maskattn::X_masks_bwd`,
its backward pass.

- mask bool `(B | 1, H | 1, N)`; indices int32 of that shape, ascending, entries past the count hold
  N; counts int32 `(B | 1, H | 1)`; None for both means that all tokens are selected
- query `(B, Hq, Nq, D)`; key, value `(B, Hkv, Nk, D)`; one dtype; query head h uses kv head
  `h // (Hq // Hkv)`
- key_bias `(B, Hkv, Nk)` and lse `(B, Hq, Nq)` in the accumulation dtype (float64 for float64, else
  float32); lse is contiguous, -inf where a query is not selected or sees no key
- a key whose bias is -inf counts as not selected
- lse is relative to the largest bias of the selected keys of its head. Only a backend that
  `takes_any_bias` has to see to that: the others get biases of which the largest one is 0
- where a backend has both infer and masks_bwd, they take masks and key_bias as `masked_attention`
  does: the dimension of heads may lack, and sizes of 1 broadcast
- results that stand for a tensor t (out and dq for query, dk for key, dv for value) are laid out by
  `empty_result(t)`; dbias is contiguous, of key_bias's shape, or (0,) where there is none
"""

import torch
from torch import Tensor

from maskattn_kernels.problem import Problem

SCHEMAS = {
    "select_tokens": "(Tensor mask) -> (Tensor indices, Tensor counts)",
    "fwd": (
        "(Tensor query, Tensor key, Tensor value, Tensor? query_indices, Tensor? query_counts, "
        "Tensor? key_indices, Tensor? key_counts, Tensor? key_bias, float scale) "
        "-> (Tensor out, Tensor lse)"
    ),
    "bwd": (
        "(Tensor dout, Tensor? dlse, Tensor query, Tensor key, Tensor value, "
        "Tensor out, Tensor lse, Tensor? query_indices, Tensor? query_counts, "
        "Tensor? key_indices, Tensor? key_counts, Tensor? key_bias, float scale) "
        "-> (Tensor dq, Tensor dk, Tensor dv, Tensor dbias)"
    ),
}
OPTIONAL_SCHEMAS = {
    "infer": (
        "(Tensor query, Tensor key, Tensor value, Tensor? query_mask, Tensor? key_mask, "
        "Tensor? key_bias, float scale) -> (Tensor out, Tensor lse)"
    ),
    "masks_bwd": (
        "(Tensor dout, Tensor? dlse, Tensor query, Tensor key, Tensor value, "
        "Tensor out, Tensor lse, Tensor? query_mask, Tensor? key_mask, Tensor? key_bias, "
        "float scale) -> (Tensor dq, Tensor dk, Tensor dv, Tensor dbias)"
    ),
}


class Backend:
    """One way to compute the op. Subclasses fill in what they can do; instances hold no state."""

    name: str
    by_name_only: str = ""  # why it runs only if asked for by name; empty: it may be chosen
    takes_any_bias: bool = False  # its ops take biases of any size, in the accumulation dtype

    def unavailable(self) -> list[str]:
        """Why this backend cannot run anything on this machine; empty when it can."""
        return []

    def reasons(self, problem: Problem) -> list[str]:
        """Why this backend cannot run the call `problem`; empty when it can."""
        raise NotImplementedError

    def build(self) -> dict[str, str]:
        """What was compiled, by what, and for which processors."""
        return {}


OLDEST_GPU = (8, 0)  # compute capability; older chips have no asynchronous copies and no bfloat16


def too_old() -> list[str]:
    """Why the current GPU cannot run fused kernels; empty when it can."""
    if torch.version.hip:
        return []
    major, minor = torch.cuda.get_device_capability()
    if (major, minor) >= OLDEST_GPU:
        return []
    return [f"needs compute capability 8.0 or newer, the GPU has {major}.{minor}"]


KERNEL_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def kernel_limits(problem: Problem) -> list[str]:
    """Why fused kernels cannot run this call, whatever their backend; empty when they can."""
    why = []
    if problem.dtype not in KERNEL_DTYPES:
        why.append(f"supports float32, bfloat16 and float16, got {problem.dtype}")
    if problem.head_dim == 0:
        why.append("needs a head_dim of at least 1, got 0")
    return why


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of scores, lse and key_bias for tensors of `dtype`."""
    return torch.float64 if dtype is torch.float64 else torch.float32


def empty_result(t: Tensor) -> Tensor:
    """An uninitialised tensor like t: dense, and with t's order of tokens and heads in memory.

    Tokens-major memory (B, N, H, D) where t has it (a projection split into heads), so that the
    caller's `transpose(1, 2)` back is free; else (B, H, N, D).
    """
    b, h, n, d = t.shape
    if h > 1 and t.stride(1) < t.stride(2):
        return t.new_empty((b, n, h, d)).transpose(1, 2)
    return t.new_empty((b, h, n, d))
