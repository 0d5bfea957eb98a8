# SPDX-License-Identifier: BSD-3-Clause
"""What a backend may look at when it decides whether it can run a call."""

from typing import NamedTuple

import torch

MAX_HEAD_DIM = 256
"""The largest last size of query, key and value that an op takes; csrc/params.h has it too."""


class Problem(NamedTuple):
    """One call of the op in numbers: made once per call, after the arguments were validated.

    It holds no tensor, so it is cheap to make and to print, and it cannot change under a backend.
    """

    batch: int
    heads: int  # of the query; a multiple of kv_heads
    kv_heads: int
    query_len: int
    key_len: int
    head_dim: int
    dtype: torch.dtype  # of query, key and value
    device_type: str  # "cpu", "cuda", "meta", ...
    gradients: bool = False  # whether autograd may ask for some
