# SPDX-License-Identifier: BSD-3-Clause
"""Token selection, and how every other kernel reads a selection, and rows by it.

`select_tokens_kernel` turns one row of a mask into the ascending positions of its selected tokens.
One program owns one row: it walks over the mask in blocks, gives each selected token the next free
entry (a running count plus a prefix sum inside the block), and fills the entries past the count
with the row's length. Reads and writes are in memory order.

The kernels of attention own two things each, so that every row of a result is written exactly once,
in one launch, with no memset and no atomics:

- BLOCK *selected* rows, by their place in the index: `selected_rows`;
- the zeros among BLOCK *original* rows: `unselected_rows`. Their places in the ascending index are
  found by a search that probes FAN entries at a time, which takes 2 rounds of loads for 16,384
  tokens where halving takes 14.
"""

import triton
import triton.language as tl

FAN = tl.constexpr(128)  # probes of a round
PAST_ALL = tl.constexpr(2**31 - 1)  # above every token


@triton.jit(do_not_specialize=["heads", "n"])
def select_tokens_kernel(mask, indices, counts, strides, heads, n, BLOCK: tl.constexpr):
    """mask uint8 (B, H, N) of any strides -> indices (B, H, N), counts (B, H), both contiguous."""
    pid = tl.program_id(0)
    row = pid.to(tl.int64)
    mask += (pid // heads).to(tl.int64) * strides[0] + (pid % heads).to(tl.int64) * strides[1]
    indices += row * n
    lanes = tl.arange(0, BLOCK)

    count = 0
    for start in range(0, n, BLOCK):
        tokens = start + lanes
        inside = tokens < n
        is_selected = tl.load(mask + tokens.to(tl.int64) * strides[2], mask=inside, other=0) != 0
        ones = is_selected.to(tl.int32)
        places = count + tl.cumsum(ones, 0) - ones
        tl.store(indices + places, tokens, mask=is_selected)
        count += tl.sum(ones, 0)
    tl.store(counts + row, count)

    for start in range(0, n, BLOCK):
        places = start + lanes
        past_count = (places >= count) & (places < n)
        tl.store(indices + places, places * 0 + n, mask=past_count)


@triton.jit
def count_of(counts, strides, b, h, n, HAS_INDEX: tl.constexpr):
    """How many tokens of head h are selected."""
    count = n
    if HAS_INDEX:
        count = tl.minimum(tl.load(counts + b * strides[2] + h * strides[3]), n)
    return count


@triton.jit
def selected_rows(index, places, count, n, HAS_INDEX: tl.constexpr, SHORT: tl.constexpr = 0):
    """(rows in int64, which of them count): the tokens at these places of the index.

    An entry that names no token, which only an index made by hand can hold, counts as none: memory
    outside of a tensor is never touched. With SHORT the index is what `list_mask` gave.
    """
    counts = places < count
    rows = places
    if HAS_INDEX:
        if SHORT:
            rows = tl.gather(index, tl.minimum(places, SHORT - 1), 0)
        else:
            rows = tl.load(index + places, mask=counts, other=0)
            counts = counts & (rows >= 0) & (rows < n)
    return rows.to(tl.int64), counts


@triton.jit
def unselected_rows(index, count, first_row, n, BLOCK: tl.constexpr):
    """(rows in int64, which of them are not selected) of BLOCK rows from first_row on."""
    lanes = tl.arange(0, FAN)
    low, high = 0, count  # so many entries lie below first_row: at least low, at most high
    while low < high:
        step = tl.cdiv(high - low, FAN)
        probes = low + (lanes + 1) * step - 1
        entries = tl.load(index + probes, mask=probes < high, other=PAST_ALL)
        low += tl.sum((entries < first_row).to(tl.int32), 0) * step
        high = tl.minimum(low + step - 1, high)

    rows = first_row + tl.arange(0, BLOCK)
    places = low + tl.arange(0, BLOCK)
    entries = tl.load(index + places, mask=places < count, other=PAST_ALL)
    hits = tl.sum((rows[:, None] == entries[None, :]).to(tl.int32), 1)
    return rows.to(tl.int64), (hits == 0) & (rows < n)


@triton.jit
def list_mask(mask, stride, n, SHORT: tl.constexpr):
    """(the selected tokens in order, how many there are) of a mask of at most SHORT tokens.

    Stands in for an index in `selected_rows`, and spares the launch that would make one.
    """
    tokens = tl.arange(0, SHORT)
    is_selected = tl.load(mask + tokens.to(tl.int64) * stride, mask=tokens < n, other=0) != 0
    return tl.sort(tl.where(is_selected, tokens, SHORT - 1)), tl.sum(is_selected.to(tl.int32), 0)


@triton.jit
def unselected_by_mask(mask, stride, first_row, n, BLOCK: tl.constexpr):
    """As `unselected_rows`."""
    rows = (first_row + tl.arange(0, BLOCK)).to(tl.int64)
    return rows, tl.load(mask + rows * stride, mask=rows < n, other=1) == 0


@triton.jit
def tile_mask(rows_count, columns, D: tl.constexpr, D_PAD: tl.constexpr):
    """bool (rows, D_PAD): the entries of a tile that exist."""
    mask = rows_count[:, None]
    if D != D_PAD:
        mask = mask & (columns < D)[None, :]
    return mask


@triton.jit
def load_rows(base, rows, strides, columns, mask):
    """A tile of the rows of a head, in their dtype; 0 where the mask is not set."""
    return tl.load(base + rows[:, None] * strides[2] + columns[None, :], mask=mask, other=0.0)


@triton.jit
def store_rows(base, rows, strides, columns, tile, mask):
    """Writes a float32 tile to the rows of a head, rounded to their dtype."""
    target = base + rows[:, None] * strides[2] + columns[None, :]
    tl.store(target, tile.to(base.dtype.element_ty), mask=mask)


@triton.jit
def dot(a, b, accumulator, PRECISION: tl.constexpr):
    """accumulator + a @ b in float32."""
    if PRECISION == "widened":  # Triton's interpreter multiplies the bits of a bfloat16
        return tl.dot(a.to(tl.float32), b.to(tl.float32), accumulator, input_precision="ieee")
    return tl.dot(a, b, accumulator, input_precision=PRECISION)
