# SPDX-License-Identifier: BSD-3-Clause
"""The forward pass for Blackwell (compute capability 10.0) in CuTe-DSL: as forward_sm90.py, with
products by tcgen05.

One warpgroup attends, a thread a query. The first warp starts the products; their results lie in
tensor memory, scores in columns [0, keys), products with values after them. Scores are read twice,
COLUMNS at a time: for the maximum, then for the weights, which go to shared memory for the product
with the values. The running output stays in registers: products with values start from zero.

Memory order, beside that of forward_sm90.py. tcgen05.commit arrives at the barrier "done" when the
products before it have ended. Weights are plain stores: every thread fences them, by
fence.proxy.async, before the barrier of the warpgroup, after which the product starts. A barrier at
the end of a tile, between tcgen05.fence::before_thread_sync and ::after_thread_sync, keeps the
products of the next tile behind the loads of this one.

No GPU has run this kernel; its PTX was run on the CPU (tests/support/ptx.py). Products and softmax
do not overlap yet.
"""

import cutlass
import forward_sm90
import tile_arithmetic as tiles
from cutlass import Float32, Int32, Int64, cute
from cutlass._mlir.dialects import nvvm
from cutlass.cute.nvgpu import tcgen05
from cutlass.cute.typing import Pointer
from cutlass.utils import blackwell_helpers
from token_rows import (
    LOG2E,
    NO_TOKEN,
    Rows,
    TokenList,
    chunk_at,
    copy_rows,
    number_at,
    token_at,
    write_rows,
)

COLUMNS = 32  # of tensor memory, that a thread loads at a time
TENSOR_COLUMNS = 256  # that a block allocates


def after_sync() -> None:
    nvvm.tcgen05_fence(nvvm.Tcgen05FenceKind.AFTER_THREAD_SYNC)


class Forward(forward_sm90.Forward):
    """The kernel for one dtype (16 bits) and width of a tile."""

    arch = "sm_100a"

    @cute.jit
    def attend(
        self, base: Pointer, barriers: Pointer, thread: Int32, group: Int32,
        queries: TokenList, first: Int32, key_count: Int32,
        q: Rows, out: Rows, lse: Int64, scale: Float32,
    ):  # fmt: skip
        """128 queries over all keys."""
        major, one = cute.nvgpu.OperandMajorMode, tcgen05.CtaGroup.ONE
        rows, keys, width = tiles.QUERIES, self.keys, self.width
        scores_mma = blackwell_helpers.make_trivial_tiled_mma(
            self.dtype, self.dtype, major.K, major.K, Float32, one, (rows, keys)
        )
        values_mma = blackwell_helpers.make_trivial_tiled_mma(
            self.dtype, self.dtype, major.K, major.MN, Float32, one, (rows, width)
        )
        own, weights = base + self.memory.q, base + self.memory.weights
        of_scores, of_values = scores_mma.get_slice(0), values_mma.get_slice(0)
        q_tile = self.operand(own, rows, 1)
        k_tiles = self.operand(base + self.memory.k, keys, tiles.STAGES)
        p_tile = self.operand(weights, rows, 1, keys)
        v_tiles = forward_sm90.turned(self.operand(base + self.memory.v, keys, tiles.STAGES))
        q_read = of_scores.make_fragment_A(of_scores.partition_A(q_tile))
        k_read = of_scores.make_fragment_B(of_scores.partition_B(k_tiles))
        p_read = of_values.make_fragment_A(of_values.partition_A(p_tile))
        v_read = of_values.make_fragment_B(of_values.partition_B(v_tiles))

        done = cute.recast_ptr(base + self.memory.done, dtype=Int64)
        tensor_place = cute.recast_ptr(base + self.memory.tensor, dtype=Int32)
        is_first_warp = cute.arch.make_warp_uniform(thread // 32) == 0
        if thread == 0:
            cute.arch.mbarrier_init(done, 1)
            cute.arch.mbarrier_init(done + 1, 1)
            cute.arch.mbarrier_init_fence()
        if is_first_warp:
            cute.arch.alloc_tmem(TENSOR_COLUMNS, tensor_place)
        tokens = self.numbers(base, self.memory.queries, rows, Int32)
        tokens[thread] = token_at(queries, first + thread)
        self.meet(group)
        copy_rows(own, q, tokens, thread, rows, width)
        cute.arch.cp_async_wait_group(0)
        cute.arch.fence_proxy("async.shared", space="cta")
        self.meet(group)

        tensor = cute.arch.retrieve_tmem_ptr(Float32, 16, tensor_place)
        of_tile = of_scores.make_fragment_C(of_scores.partition_shape_C((rows, keys)))
        scores = cute.make_tensor(tensor, of_tile.layout)
        of_tile = of_values.make_fragment_C(of_values.partition_shape_C((rows, width)))
        results = cute.make_tensor(tensor + keys, of_tile.layout)
        score_parts = cute.flat_divide(scores[(None, None), 0, 0], (rows, COLUMNS))
        result_parts = cute.flat_divide(results[(None, None), 0, 0], (rows, COLUMNS))
        load = cute.make_copy_atom(
            tcgen05.copy.Ld32x32bOp(tcgen05.copy.Repetition(COLUMNS)), Float32
        )
        loader = tcgen05.make_tmem_copy(load, score_parts[None, None, 0, 0]).get_slice(thread)
        part = cute.make_rmem_tensor(COLUMNS, Float32)
        acc = cute.make_rmem_tensor(width, Float32)
        acc.fill(0.0)
        top, total = -Float32.inf, Float32(0.0)  # running maximum; sum of exp(s - top)

        unit_scale = scale * LOG2E
        for tile in cutlass.range((key_count + (keys - 1)) // keys, unroll=1):
            stage, turn = tile % tiles.STAGES, tile // tiles.STAGES % 2
            terms = self.numbers(base + stage * (keys * 4), self.memory.terms, keys, Float32)
            cute.arch.mbarrier_wait(self.full(barriers, 0, stage), turn)
            k_tile = k_read[None, None, None, stage]
            self.multiply(
                scores_mma, scores, q_read[None, None, None, 0], k_tile, done, is_first_warp
            )
            cute.arch.mbarrier_wait(done, tile % 2)
            after_sync()
            following = top
            for n in cutlass.range(keys // COLUMNS, unroll=1):
                self.load_part(loader, score_parts[None, None, 0, n], part)
                for i in cutlass.range_constexpr(COLUMNS):
                    score = part[i] * unit_scale + terms[n * COLUMNS + i]
                    following = cute.arch.fmax(following, score)
            level = following
            if following == -Float32.inf:
                level = Float32(0.0)  # -inf - -inf would be NaN
            shrink = cute.math.exp2(top - level, fastmath=True)
            top = following
            row_sum = Float32(0.0)
            for n in cutlass.range(keys // COLUMNS, unroll=1):
                self.load_part(loader, score_parts[None, None, 0, n], part)
                for i in cutlass.range_constexpr(COLUMNS):
                    score = part[i] * unit_scale + terms[n * COLUMNS + i]
                    part[i] = cute.math.exp2(score - level, fastmath=True)
                    row_sum += part[i]
                self.store_row(weights, thread, n * COLUMNS, part, COLUMNS, Float32(1.0))
            total = total * shrink + row_sum
            self.release(self.empty(barriers, 0, stage))
            cute.arch.fence_proxy("async.shared", space="cta")
            self.meet(group)  # all weights are there

            cute.arch.mbarrier_wait(self.full(barriers, 1, stage), turn)
            v_tile = v_read[None, None, None, stage]
            self.multiply(
                values_mma, results, p_read[None, None, None, 0], v_tile, done + 1, is_first_warp
            )
            cute.arch.mbarrier_wait(done + 1, tile % 2)
            after_sync()
            self.release(self.empty(barriers, 1, stage))
            for n in cutlass.range_constexpr(width // COLUMNS):
                self.load_part(loader, result_parts[None, None, 0, n], part)
                for i in cutlass.range_constexpr(COLUMNS):
                    acc[n * COLUMNS + i] = acc[n * COLUMNS + i] * shrink + part[i]
            nvvm.tcgen05_fence(nvvm.Tcgen05FenceKind.BEFORE_THREAD_SYNC)
            self.meet(group)
            after_sync()
        if is_first_warp:
            cute.arch.relinquish_tmem_alloc_permit()
            cute.arch.dealloc_tmem(tensor, TENSOR_COLUMNS)

        token = tokens[thread]
        if total == 0.0:
            total = Float32(1.0)  # no key: out 0, lse -inf; NaN stays
        if token != NO_TOKEN:
            row_lse = top / LOG2E + cute.math.log(total)
            number_at(lse + Int64(token) * 4, Float32)[0] = row_lse
        self.store_row(own, thread, 0, acc, width, 1.0 / total)
        self.meet(group)
        write_rows(own, thread, tokens, out, rows, width)

    @cute.jit
    def multiply(
        self, mma: cute.TiledMma, acc: cute.Tensor, a: cute.Tensor, b: cute.Tensor,
        done: Pointer, is_first_warp: cutlass.Boolean,
    ):  # fmt: skip
        """Starts acc = a b by the first warp; `done` says when it has ended."""
        after_sync()
        if is_first_warp:
            atom = cute.make_mma_atom(mma.op)
            for k in cutlass.range_constexpr(cute.size(a.shape[2])):
                atom.set(tcgen05.Field.ACCUMULATE, k > 0)
                cute.gemm(atom, acc, a[None, None, k], b[None, None, k], acc)
            with cute.arch.elect_one():
                tcgen05.commit(done)

    @cute.jit
    def load_part(self, loader: cute.TiledCopy, columns: cute.Tensor, part: cute.Tensor):
        """COLUMNS numbers of this thread's row of tensor memory."""
        place = loader.partition_D(cute.make_identity_tensor((tiles.QUERIES, COLUMNS)))
        target = cute.make_tensor(part.iterator, cute.make_layout(place.shape))
        cute.copy(loader, loader.partition_S(columns), target)
        cute.arch.fence_view_async_tmem_load()

    @cute.jit
    def store_row(
        self, tile: Pointer, row: Int32, column: Int32, values: cute.Tensor,
        count: cutlass.Constexpr, factor: Float32,
    ):  # fmt: skip
        """A thread's numbers, times a factor, to its row of a tile in shared memory."""
        eight = cute.make_rmem_tensor(tiles.CHUNK, self.dtype)
        for chunk in cutlass.range_constexpr(count // tiles.CHUNK):
            for i in cutlass.range_constexpr(tiles.CHUNK):
                eight[i] = (values[chunk * tiles.CHUNK + i] * factor).to(self.dtype)
            place = tiles.chunk_offset(row, column // tiles.CHUNK + chunk, tiles.QUERIES)
            cute.autovec_copy(cute.recast_tensor(eight, Int32), chunk_at(tile + place))
