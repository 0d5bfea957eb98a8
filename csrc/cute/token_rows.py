# SPDX-License-Identifier: BSD-3-Clause
"""What forward kernels in CuTe-DSL share, whatever the chip multiplies with: the arguments of a
launch, lists of tokens, rows gathered by cp.async, zeros for the rows of other tokens."""

from typing import NamedTuple

import cutlass
import tile_arithmetic as tiles
from cutlass import Float32, Int32, Int64, cute
from cutlass._mlir.dialects import nvvm
from cutlass.cute.typing import AddressSpace, Numeric, Pointer

NO_TOKEN = -1
LOG2E = 1.4426950408889634  # scores are kept in units of log2(e)


class Call(NamedTuple):
    """What a launch gets, in this order: addresses (0: not given), strides in elements, sizes."""

    q: Int64
    q_b: Int64
    q_h: Int64
    q_n: Int64
    k: Int64
    k_b: Int64
    k_h: Int64
    k_n: Int64
    v: Int64
    v_b: Int64
    v_h: Int64
    v_n: Int64
    out: Int64
    out_b: Int64
    out_h: Int64
    out_n: Int64
    lse: Int64
    queries: Int64
    queries_b: Int64
    queries_h: Int64
    query_counts: Int64
    query_counts_b: Int64
    query_counts_h: Int64
    keys: Int64
    keys_b: Int64
    keys_h: Int64
    key_counts: Int64
    key_counts_b: Int64
    key_counts_h: Int64
    bias: Int64
    bias_b: Int64
    bias_h: Int64
    bias_n: Int64
    heads_q: Int64
    heads_kv: Int64
    seqlen_q: Int64
    seqlen_k: Int64
    head_dim: Int64


class TokenList(NamedTuple):
    """The selected tokens of one (b, h), ascending."""

    indices: Int64  # address; 0: all
    count: Int32
    seqlen: Int32


class Rows(NamedTuple):
    """The rows of one (b, h) of a tensor."""

    start: Int64  # address
    stride: Int64  # in bytes
    chunks: Int32  # of 16 bytes, in a row


def number_at(address: Int64, dtype: type[Numeric]) -> cute.Tensor:
    """One number of global memory, as a tensor."""
    pointer = cute.make_ptr(dtype, address, AddressSpace.gmem, assumed_align=dtype.width // 8)
    return cute.make_tensor(pointer, cute.make_layout(1))


def chunk_at(pointer: Pointer) -> cute.Tensor:
    """16 bytes, at a multiple of 16, as four words."""
    address = cute.make_ptr(Int32, pointer.toint(), pointer.memspace, assumed_align=16)
    return cute.make_tensor(address, cute.make_layout(4))


def global_chunk(rows: Rows, token: Int32, chunk: Int32) -> Pointer:
    address = rows.start + Int64(token) * rows.stride + Int64(chunk) * 16
    return cute.make_ptr(Int32, address, AddressSpace.gmem, assumed_align=16)


@cute.jit
def token_list(
    indices: Int64, stride_b: Int64, stride_h: Int64,
    counts: Int64, counts_b: Int64, counts_h: Int64,
    b: Int64, h: Int64, seqlen: Int64,
) -> TokenList:  # fmt: skip
    count, start = Int32(seqlen), Int64(0)
    if counts != 0:
        count = min(count, number_at(counts + (b * counts_b + h * counts_h) * 4, Int32)[0])
        if indices != 0:
            start = indices + (b * stride_b + h * stride_h) * 4
    return TokenList(start, count, Int32(seqlen))


@cute.jit
def token_at(tokens: TokenList, place: Int32) -> Int32:
    """Entry `place`; NO_TOKEN past the count and for an entry outside of the sequence, which only
    an index made by hand can hold: memory outside of a tensor is never touched."""
    token = Int32(NO_TOKEN)
    if place < tokens.count:
        token = place
        if tokens.indices != 0:
            token = number_at(tokens.indices + Int64(place) * 4, Int32)[0]
            if token < 0 or token >= tokens.seqlen:
                token = Int32(NO_TOKEN)
    return token


@cute.jit
def is_selected(tokens: TokenList, token: Int32) -> cutlass.Boolean:
    """Whether the list holds a token, by halving."""
    low, high = Int32(0), tokens.count
    while low < high:
        middle = low + (high - low) // 2
        if number_at(tokens.indices + Int64(middle) * 4, Int32)[0] < token:
            low = middle + 1
        else:
            high = middle
    found = Int32(NO_TOKEN)
    if low < tokens.count:
        found = number_at(tokens.indices + Int64(low) * 4, Int32)[0]
    return found == token


@cute.jit
def key_at(keys: TokenList, place: Int32, bias: Int64, stride: Int64) -> tuple[Int32, Float32]:
    """A key's token, NO_TOKEN if it takes no part, and what is added to its score. A key with
    a bias of -inf is not read: what it holds must not be seen."""
    token = token_at(keys, place)
    term = -Float32.inf
    if token != NO_TOKEN:
        term = Float32(0.0)
        if bias != 0:
            term = number_at(bias + Int64(token) * stride * 4, Float32)[0]
            if term == -Float32.inf:
                token = Int32(NO_TOKEN)
            term *= LOG2E
    return token, term


@cute.jit
def copy_rows(
    tile: Pointer, rows: Rows, tokens: cute.Tensor, thread: Int32,
    count: cutlass.Constexpr, width: cutlass.Constexpr,
):  # fmt: skip
    """Starts the copies of `count` rows by a warpgroup, zeros where there is no token."""
    for copy in cutlass.range_constexpr(tiles.copies_of(count, width)):
        row, chunk = tiles.piece_of(thread, copy, width)
        target = tile + tiles.chunk_offset(row, chunk, count)
        token = tokens[row]
        size = Int32(16)
        if token == NO_TOKEN or chunk >= rows.chunks:
            size = Int32(0)
            token, chunk = Int32(0), Int32(0)  # an address inside of the tensor; nothing is read
        nvvm.cp_async_shared_global(
            target.to_llvm_ptr(),
            global_chunk(rows, token, chunk).to_llvm_ptr(),
            16,
            nvvm.LoadCacheModifierKind.CG,
            cp_size=size.ir_value(),
        )
    cute.arch.cp_async_commit_group()


@cute.jit
def write_rows(
    tile: Pointer, thread: Int32, tokens: cute.Tensor, out: Rows,
    count: cutlass.Constexpr, width: cutlass.Constexpr,
):  # fmt: skip
    """Copies `count` rows of results to the rows of their tokens, by a warpgroup."""
    for copy in cutlass.range_constexpr(tiles.copies_of(count, width)):
        row, chunk = tiles.piece_of(thread, copy, width)
        token = tokens[row]
        if token != NO_TOKEN and chunk < out.chunks:
            result = chunk_at(tile + tiles.chunk_offset(row, chunk, count))
            cute.autovec_copy(result, chunk_at(global_chunk(out, token, chunk)))


@cute.jit
def write_zeros(thread: Int32, queries: TokenList, first: Int32, out: Rows, lse: Int64):
    """Zeros, and lse -inf, for the tokens among the block's QUERIES that are not selected. A
    thread looks one token up, a warp writes the row."""
    token = first + thread
    bare = token < queries.seqlen
    if bare:
        bare = not is_selected(queries, token)
        if bare:
            number_at(lse + Int64(token) * 4, Float32)[0] = -Float32.inf
    lane = thread % 32
    votes = cute.arch.vote_ballot_sync(bare)
    for of_lane in cutlass.range(32, unroll=1):
        if (votes >> of_lane) & 1 != 0 and lane < out.chunks:
            row = chunk_at(global_chunk(out, token - lane + of_lane, lane))
            for word in cutlass.range_constexpr(4):
                row[word] = Int32(0)
