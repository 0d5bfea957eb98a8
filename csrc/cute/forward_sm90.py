# SPDX-License-Identifier: BSD-3-Clause
"""The forward pass for Hopper in CuTe-DSL: out and lse of the selected queries over the selected
keys, zeros elsewhere, in one launch. As csrc/cuda/forward.cu:

    s_j = scale <q, k_j> + key_bias_j
    lse = log sum_j exp(s_j)     out = sum_j exp(s_j - lse) v_j

One block owns QUERIES selected queries of one head, and the zeros among QUERIES tokens. It has
three warpgroups:

    gather     lists the tokens of a tile of keys and what is added to their scores, copies the rows
               of keys and values from where they lie, and at the end writes zeros to the rows of
               tokens that are not selected
    2 x attend each owns 64 queries: gathers them, multiplies tile by tile (WGMMA), keeps the
               running maximum, sum and output of the online softmax (Milakov and Gimelshein,
               arXiv:1805.02867), and writes each row to the place of its token

Memory order. Rows come by cp.async, which fills rows past the count with zeros (a size of 0). The
copies belong to the generic proxy, WGMMA reads by the async one: the threads that copied wait for
their own copies, fence (fence.proxy.async, as PTX asks for), and only then arrive at the barrier
"full". Terms and tokens are plain stores before the same arrival. A warp that has read a tile
arrives at "empty", after wgmma.wait_group. The barriers of keys and of values are apart, so that a
product with values runs while the next keys come.

Tested and timed on an H200 (docs/gpu.md); its PTX runs on the CPU (tests/support/ptx.py). Warp
specialization with register reallocation is from FlashAttention-3 (arXiv:2407.08608); there is no
overlap of softmax and products inside a warpgroup yet.
"""

import cutlass
import tile_arithmetic as tiles
from cutlass import Float32, Int32, Int64, const_expr, cute
from cutlass.cute.nvgpu import warpgroup
from cutlass.cute.typing import Numeric, Pointer
from cutlass.utils import hopper_helpers
from token_rows import (
    LOG2E,
    NO_TOKEN,
    Call,
    Rows,
    TokenList,
    copy_rows,
    key_at,
    number_at,
    token_at,
    token_list,
    write_rows,
    write_zeros,
)

GATHERERS = 3  # named barriers: 0 is that of the block, then one of each warpgroup
REGISTERS_GATHER, REGISTERS_ATTEND = 40, 232  # together those of three warpgroups at 168


@cute.jit
def multiply(
    mma: cute.TiledMma, acc: cute.Tensor, a: cute.Tensor, b: cute.Tensor, adds: cutlass.Constexpr
):
    """acc = a b, or acc += a b; waits for the result."""
    atom = cute.make_mma_atom(mma.op)
    warpgroup.fence()
    for k in cutlass.range_constexpr(cute.size(a.shape[2])):
        atom.set(warpgroup.Field.ACCUMULATE, adds or k > 0)
        cute.gemm(atom, acc, a[None, None, k], b[None, None, k], acc)
    warpgroup.commit_group()
    warpgroup.wait_group(0)


def turned(tiles_of_rows: cute.Tensor) -> cute.Tensor:
    """Tiles (rows, columns, stages) as (columns, rows, stages)."""
    layout = cute.select(tiles_of_rows.layout, mode=[1, 0, 2])
    return cute.make_tensor(tiles_of_rows.iterator, layout)


def over_row(x: Float32, combine) -> Float32:
    """`combine` over the four lanes that share a row of a result."""
    for distance in (1, 2):
        x = combine(x, cute.arch.shuffle_sync_bfly(x, distance))
    return x


def add(a: Float32, b: Float32) -> Float32:
    return a + b


class Forward:
    """The kernel for one dtype (16 bits) and width of a tile; attend() depends on the chip."""

    arch = "sm_90a"

    def __init__(self, dtype: type[Numeric], width: int) -> None:
        self.dtype, self.width = dtype, width
        self.keys = tiles.keys_of(width)
        self.memory = tiles.memory_of(width, self.arch)
        self.consumers, self.threads = tiles.CONSUMERS[self.arch], tiles.threads_of(self.arch)

    @cute.jit
    def __call__(self, call: Call, scale: Float32, blocks: Int32):
        """Launches; what is shipped is the kernel alone."""
        self.kernel(call, scale).launch(
            grid=(blocks, 1, 1),
            block=(self.threads, 1, 1),
            smem=self.memory.end,
            min_blocks_per_mp=1,
        )

    @cute.kernel
    def kernel(self, call: Call, scale: Float32):
        thread = cute.arch.thread_idx()[0] % tiles.GROUP
        group = cute.arch.make_warp_uniform(cute.arch.thread_idx()[0] // tiles.GROUP)
        base = cute.arch.get_dyn_smem(cutlass.Uint8, alignment=1024)
        barriers = cute.recast_ptr(base + self.memory.barriers, dtype=Int64)

        blocks = (Int32(call.seqlen_q) + (tiles.QUERIES - 1)) // tiles.QUERIES
        first = cute.arch.block_idx()[0] % blocks * tiles.QUERIES
        bh = cute.arch.block_idx()[0] // blocks
        heads_q = Int32(call.heads_q)
        b, h = Int64(bh // heads_q), Int64(bh % heads_q)
        kv_head = Int64(Int32(h) // (heads_q // Int32(call.heads_kv)))
        chunks = Int32(call.head_dim) // tiles.CHUNK
        queries = token_list(
            call.queries, call.queries_b, call.queries_h,
            call.query_counts, call.query_counts_b, call.query_counts_h,
            b, h, call.seqlen_q,
        )  # fmt: skip
        keys = token_list(
            call.keys, call.keys_b, call.keys_h,
            call.key_counts, call.key_counts_b, call.key_counts_h,
            b, kv_head, call.seqlen_k,
        )  # fmt: skip
        out = Rows(call.out + (b * call.out_b + h * call.out_h) * 2, call.out_n * 2, chunks)
        lse = call.lse + Int64(bh) * call.seqlen_q * 4

        if cute.arch.thread_idx()[0] == 0:
            for stage in cutlass.range_constexpr(tiles.STAGES):
                for of_values in cutlass.range_constexpr(2):
                    cute.arch.mbarrier_init(self.full(barriers, of_values, stage), tiles.GROUP)
                    cute.arch.mbarrier_init(
                        self.empty(barriers, of_values, stage), self.consumers * tiles.GROUP // 32
                    )
            cute.arch.mbarrier_init_fence()
        cute.arch.sync_threads()

        if group == self.consumers:
            if const_expr(self.consumers > 1):
                cute.arch.setmaxregister_decrease(REGISTERS_GATHER)
            if first < queries.count:
                k = Rows(call.k + (b * call.k_b + kv_head * call.k_h) * 2, call.k_n * 2, chunks)
                v = Rows(call.v + (b * call.v_b + kv_head * call.v_h) * 2, call.v_n * 2, chunks)
                bias = call.bias
                if bias != 0:
                    bias += (b * call.bias_b + kv_head * call.bias_h) * 4
                self.gather(base, barriers, thread, keys, k, v, bias, call.bias_n)
            if queries.indices != 0:
                write_zeros(thread, queries, first, out, lse)
        else:
            if const_expr(self.consumers > 1):
                cute.arch.setmaxregister_increase(REGISTERS_ATTEND)
            if first < queries.count:
                q = Rows(call.q + (b * call.q_b + h * call.q_h) * 2, call.q_n * 2, chunks)
                self.attend(
                    base, barriers, thread, group, queries, first, keys.count, q, out, lse, scale
                )

    def full(self, barriers: Pointer, of_values: int, stage: Int32) -> Pointer:
        return barriers + (of_values * tiles.STAGES + stage)

    def empty(self, barriers: Pointer, of_values: int, stage: Int32) -> Pointer:
        return barriers + ((2 + of_values) * tiles.STAGES + stage)

    def numbers(self, base: Pointer, offset: int, count: int, dtype: type[Numeric]) -> cute.Tensor:
        """`count` numbers of shared memory."""
        return cute.make_tensor(
            cute.recast_ptr(base + offset, dtype=dtype), cute.make_layout(count)
        )

    @cute.jit
    def gather(
        self, base: Pointer, barriers: Pointer, thread: Int32,
        keys: TokenList, k: Rows, v: Rows, bias: Int64, bias_stride: Int64,
    ):  # fmt: skip
        """Streams all keys and values through shared memory. A tile is announced when the copies
        of the next one are on their way."""
        tile_bytes = self.keys * self.width * 2
        count = (keys.count + (self.keys - 1)) // self.keys
        token, term = key_at(keys, thread, bias, bias_stride)
        for tile in cutlass.range(count, unroll=1):
            stage, turn = tile % tiles.STAGES, tile // tiles.STAGES % 2
            tokens = self.numbers(
                base + stage * (self.keys * 4), self.memory.tokens, self.keys, Int32
            )
            terms = self.numbers(
                base + stage * (self.keys * 4), self.memory.terms, self.keys, Float32
            )
            cute.arch.mbarrier_wait(self.empty(barriers, 0, stage), turn ^ 1)
            if thread < self.keys:
                tokens[thread] = token
                terms[thread] = term
            cute.arch.barrier(barrier_id=GATHERERS, number_of_threads=tiles.GROUP)
            token, term = key_at(keys, (tile + 1) * self.keys + thread, bias, bias_stride)

            copy_rows(
                base + (self.memory.k + stage * tile_bytes),
                k,
                tokens,
                thread,
                self.keys,
                self.width,
            )
            if tile > 0:
                self.announce(self.full(barriers, 1, stage ^ 1), 1)
            cute.arch.mbarrier_wait(self.empty(barriers, 1, stage), turn ^ 1)
            copy_rows(
                base + (self.memory.v + stage * tile_bytes),
                v,
                tokens,
                thread,
                self.keys,
                self.width,
            )
            self.announce(self.full(barriers, 0, stage), 1)
        if count > 0:
            self.announce(self.full(barriers, 1, (count - 1) % tiles.STAGES), 0)

    def announce(self, barrier: Pointer, younger: int) -> None:
        """Arrives when all copies of this thread but those of the `younger` last groups are done,
        and can be read by WGMMA."""
        cute.arch.cp_async_wait_group(younger)
        cute.arch.fence_proxy("async.shared", space="cta")
        cute.arch.mbarrier_arrive(barrier)

    @cute.jit
    def attend(
        self, base: Pointer, barriers: Pointer, thread: Int32, group: Int32,
        queries: TokenList, first: Int32, key_count: Int32,
        q: Rows, out: Rows, lse: Int64, scale: Float32,
    ):  # fmt: skip
        """One warpgroup's 64 queries over all keys."""
        major = cute.nvgpu.OperandMajorMode
        rows, keys, width = tiles.GROUP_QUERIES, self.keys, self.width
        scores_mma = hopper_helpers.make_trivial_tiled_mma(
            self.dtype, self.dtype, major.K, major.K, Float32, (1, 1, 1), (rows, keys)
        )
        values_mma = hopper_helpers.make_trivial_tiled_mma(
            self.dtype, self.dtype, major.K, major.MN, Float32, (1, 1, 1), (rows, width),
            warpgroup.OperandSource.RMEM,
        )  # fmt: skip
        own = base + (self.memory.q + group * (rows * width * 2))
        q_tile = self.operand(own, rows, 1)
        k_tiles = self.operand(base + self.memory.k, keys, tiles.STAGES)
        v_tiles = turned(self.operand(base + self.memory.v, keys, tiles.STAGES))
        of_scores, of_values = scores_mma.get_slice(0), values_mma.get_slice(0)
        q_read = of_scores.make_fragment_A(of_scores.partition_A(q_tile))
        k_read = of_scores.make_fragment_B(of_scores.partition_B(k_tiles))
        v_read = of_values.make_fragment_B(of_values.partition_B(v_tiles))
        scores = cute.make_rmem_tensor(of_scores.partition_shape_C((rows, keys)), Float32)
        acc = cute.make_rmem_tensor(of_values.partition_shape_C((rows, width)), Float32)
        weights = cute.make_rmem_tensor(of_values.partition_shape_A((rows, keys)), self.dtype)
        acc.fill(0.0)
        top = cute.make_rmem_tensor(2, Float32)  # running maximum of the scores of two rows
        total = cute.make_rmem_tensor(2, Float32)  # this lane's part of the sum of exp(s - top)
        top.fill(-Float32.inf)
        total.fill(0.0)

        tokens = self.numbers(base + group * (rows * 4), self.memory.queries, rows, Int32)
        if thread < rows:
            tokens[thread] = token_at(queries, first + group * rows + thread)
        self.meet(group)
        copy_rows(own, q, tokens, thread, rows, width)
        cute.arch.cp_async_wait_group(0)
        cute.arch.fence_proxy("async.shared", space="cta")
        self.meet(group)

        unit_scale = scale * LOG2E
        for tile in cutlass.range((key_count + (keys - 1)) // keys, unroll=1):
            stage, turn = tile % tiles.STAGES, tile // tiles.STAGES % 2
            terms = self.numbers(base + stage * (keys * 4), self.memory.terms, keys, Float32)
            cute.arch.mbarrier_wait(self.full(barriers, 0, stage), turn)
            multiply(
                scores_mma,
                scores,
                q_read[None, None, None, 0],
                k_read[None, None, None, stage],
                False,
            )
            self.soften(scores, terms, weights, acc, top, total, unit_scale, thread)
            self.release(self.empty(barriers, 0, stage))
            cute.arch.mbarrier_wait(self.full(barriers, 1, stage), turn)
            multiply(values_mma, acc, weights, v_read[None, None, None, stage], True)
            self.release(self.empty(barriers, 1, stage))
        self.write(own, thread, group, tokens, acc, top, total, out, lse)

    def layout(self, rows: int, stages: int, width: int) -> cute.ComposedLayout:
        """Of tiles of rows as chunk_offset() has it."""
        atom = warpgroup.make_smem_layout_atom(warpgroup.SmemLayoutAtomKind.K_SW128, self.dtype)
        return cute.tile_to_shape(atom, (rows, width, stages), order=(0, 1, 2))

    def operand(self, pointer: Pointer, rows: int, stages: int, width: int = 0) -> cute.Tensor:
        """Tiles in shared memory as a product reads them; by default of the width of a head."""
        layout = self.layout(rows, stages, width or self.width)
        return cute.make_tensor(
            cute.recast_ptr(pointer, layout.inner, dtype=self.dtype), layout.outer
        )

    def meet(self, group: Int32) -> None:
        """A barrier of one warpgroup."""
        cute.arch.barrier(barrier_id=1 + group, number_of_threads=tiles.GROUP)

    @cute.jit
    def release(self, barrier: Pointer):
        """This warp has read a tile."""
        cute.arch.sync_warp()
        if cute.arch.lane_idx() == 0:
            cute.arch.mbarrier_arrive(barrier)

    @cute.jit
    def soften(
        self, scores: cute.Tensor, terms: cute.Tensor, weights: cute.Tensor, acc: cute.Tensor,
        top: cute.Tensor, total: cute.Tensor, scale: Float32, thread: Int32,
    ):  # fmt: skip
        """Scores of a tile to weights, one step of the online softmax. A number's place in the
        register tensor is 4 (columns of 8) + 2 (lower row) + (odd column)."""
        s = cute.make_tensor(scores.iterator, cute.make_layout((2, 2, self.keys // 8)))
        o = cute.make_tensor(acc.iterator, cute.make_layout((2, 2, self.width // 8)))
        p = cute.make_tensor(weights.iterator, cute.make_layout((2, 2, self.keys // 8)))
        column = 2 * (thread % 4)
        for n in cutlass.range_constexpr(self.keys // 8):
            for odd in cutlass.range_constexpr(2):
                term = terms[8 * n + column + odd]
                for half in cutlass.range_constexpr(2):
                    s[odd, half, n] = s[odd, half, n] * scale + term
        for half in cutlass.range_constexpr(2):
            following = top[half]
            for n in cutlass.range_constexpr(self.keys // 8):
                for odd in cutlass.range_constexpr(2):
                    following = cute.arch.fmax(following, s[odd, half, n])
            following = over_row(following, cute.arch.fmax)
            level = following
            if following == -Float32.inf:
                level = Float32(0.0)  # -inf - -inf would be NaN
            shrink = cute.math.exp2(top[half] - level, fastmath=True)
            top[half] = following
            row_sum = Float32(0.0)
            for n in cutlass.range_constexpr(self.keys // 8):
                for odd in cutlass.range_constexpr(2):
                    s[odd, half, n] = cute.math.exp2(s[odd, half, n] - level, fastmath=True)
                    row_sum += s[odd, half, n]
            total[half] = total[half] * shrink + row_sum
            for n in cutlass.range_constexpr(self.width // 8):
                for odd in cutlass.range_constexpr(2):
                    o[odd, half, n] *= shrink
        p.store(s.load().to(self.dtype))

    @cute.jit
    def write(
        self, own: Pointer, thread: Int32, group: Int32, tokens: cute.Tensor, acc: cute.Tensor,
        top: cute.Tensor, total: cute.Tensor, out: Rows, lse: Int64,
    ):  # fmt: skip
        """Results to the rows of their tokens, by way of the shared memory of the queries."""
        rows = tiles.GROUP_QUERIES
        o = cute.make_tensor(acc.iterator, cute.make_layout((2, 2, self.width // 8)))
        pair = cute.make_rmem_tensor(2, self.dtype)
        self.meet(group)  # all warps have read the queries
        for half in cutlass.range_constexpr(2):
            row, column = tiles.score_place(thread, 2 * half)
            row_sum = over_row(total[half], add)
            if row_sum == 0.0:
                row_sum = Float32(1.0)  # no key: out 0, lse -inf; NaN stays
            token = tokens[row]
            if token != NO_TOKEN and thread % 4 == 0:
                number_at(lse + Int64(token) * 4, Float32)[0] = top[half] / LOG2E + cute.math.log(
                    row_sum
                )
            factor = 1.0 / row_sum
            for n in cutlass.range_constexpr(self.width // 8):
                for odd in cutlass.range_constexpr(2):
                    pair[odd] = (o[odd, half, n] * factor).to(self.dtype)
                place = own + (tiles.chunk_offset(row, n, rows) + column * 2)
                word = cute.make_tensor(cute.recast_ptr(place, dtype=Int32), cute.make_layout(1))
                word[0] = cute.recast_tensor(pair, Int32)[0]
        self.meet(group)
        write_rows(own, thread, tokens, out, rows, self.width)
