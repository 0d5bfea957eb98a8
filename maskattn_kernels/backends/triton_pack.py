# SPDX-License-Identifier: BSD-3-Clause
"""Rows whose bytes cannot be moved 16 at a time, copied to rows that can, before many programs
read them.

A row of 46 numbers of 16 bits starts at a multiple of 4 bytes only. A gather of such rows loads two
bytes at a time, and no copy of it is asynchronous. So the selected rows are copied once, to rows of
`packed_width` numbers with zeros at their ends. Each keeps its token, so that an index reads both.
"""

import triton
import triton.language as tl

from maskattn_kernels.backends.triton_index import count_of, load_rows, selected_rows, tile_mask


@triton.jit(do_not_specialize=["heads", "n"])
def pack_kernel(
    a,  # (B, H, N, D)
    b,
    packed_a,  # (B, H, N, D_READ), contiguous
    packed_b,
    index,
    counts,
    a_strides,
    b_strides,
    index_strides,
    heads,
    n,
    HAS_INDEX: tl.constexpr,
    D: tl.constexpr,
    D_READ: tl.constexpr,
    D_PAD: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program owns BLOCK selected rows of one head, of both tensors."""
    blocks = tl.cdiv(n, BLOCK)
    pid = tl.program_id(0)
    first, bh = (pid % blocks) * BLOCK, pid // blocks
    item, h = (bh // heads).to(tl.int64), (bh % heads).to(tl.int64)
    if HAS_INDEX:
        index += item * index_strides[0] + h * index_strides[1]
    count = count_of(counts, index_strides, item, h, n, HAS_INDEX)
    if first < count:
        columns = tl.arange(0, D_PAD)
        rows, exist = selected_rows(index, first + tl.arange(0, BLOCK), count, n, HAS_INDEX)
        given = tile_mask(exist, columns, D, D_PAD)
        written = tile_mask(exist, columns, D_READ, D_PAD)
        a += item * a_strides[0] + h * a_strides[1]
        b += item * b_strides[0] + h * b_strides[1]
        target = (bh.to(tl.int64) * n + rows)[:, None] * D_READ + columns[None, :]
        tl.store(packed_a + target, load_rows(a, rows, a_strides, columns, given), mask=written)
        tl.store(packed_b + target, load_rows(b, rows, b_strides, columns, given), mask=written)
