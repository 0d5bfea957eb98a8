// SPDX-License-Identifier: BSD-3-Clause
//
// What the backward pass computes for keys: dk, dv and dbias.
//
// One block owns kKeys selected keys of one kv head, and the zeros among kKeys tokens. They are gathered once and
// stay; the selected queries of all heads of the group stream by, packed or not (pack.cuh). This pass is not split
// over queries, so with few keys only batch and kv heads fill the chip.
//
// At head_dim 256 the registers hold dk or dv but not both: two launches, one for each.
#include "backward.cuh"

namespace maskattn {
namespace {

template <typename T, int kDim>
struct ForKeys : Backward<T, kDim> {
  using Backward<T, kDim>::kRowBytes;
  static constexpr int kKeys = 16 * Backward<T, kDim>::kWarps;
  // At head_dim 128 dk and dv fill half of the registers, and leave room for scores of 16 queries.
  static constexpr int kQueries = kDim == 128 ? 16 : Backward<T, kDim>::kStreamed;

  struct Memory {
    alignas(128) char k[kKeys * kRowBytes];
    char v[kKeys * kRowBytes];
    char q[2][kQueries * kRowBytes];
    char dout[2][kQueries * kRowBytes];
    StreamMemory<kQueries, float2> stream;
    int keys[kKeys];
  };
  static_assert(sizeof(Memory) <= 99 * 1024);
  static_assert(kQueries <= Backward<T, kDim>::kThreads);
};

template <typename T, int kDim, bool kWithDk, bool kWithDv>
__global__ __launch_bounds__(ForKeys<T, kDim>::kThreads,
                             2) void dkdv_kernel(const __grid_constant__ CudaBackwardParams p) {
  using F = ForKeys<T, kDim>;
  constexpr int kN = F::kQueries / 8;
  auto& memory = *reinterpret_cast<typename F::Memory*>(shared_memory());
  const uint32_t blocks = static_cast<uint32_t>(ceil_div(p.seqlen_k, F::kKeys));
  const uint32_t kv_heads = static_cast<uint32_t>(p.heads_kv), bh = block_index() / blocks;
  const int first = static_cast<int>(block_index() % blocks) * F::kKeys;
  const int64_t b = bh / kv_heads, kv_head = bh % kv_heads;
  const int group = static_cast<int>(p.heads_q / p.heads_kv);

  const TokenList keys = token_list(p.keys, b, kv_head, p.seqlen_k);
  const Rows<T> dk = rows_of<T>(p.dk, b, kv_head, p.head_dim);
  const Rows<T> dv = rows_of<T>(p.dv, b, kv_head, p.head_dim);
  const auto store_dbias = [&](int token, float sum) {
    if (kWithDk && p.dbias.data != nullptr) p.dbias.data[bh * p.seqlen_k + token] = sum;
  };
  for_unselected<F::kKeys, F::kThreads>(keys, first, memory.keys, [&](int token) {
    if (kWithDk) store_zeros(dk, token);
    if (kWithDv) store_zeros(dv, token);
    if (lane_index() == 0) store_dbias(token, 0.0f);
  });
  if (first >= keys.count) return;

  // Keys that take no part are not read, but their gradients are written.
  const KeyBias bias_of = key_bias_of<T>(p, b, kv_head);
  for (int i = thread_index(); i < F::kKeys; i += F::kThreads)
    store_shared(memory.keys + i, bias_of.in_play(keys[first + i]));
  block_barrier();
  const Tile<T, kDim> k{memory.k}, v{memory.v};
  gather<F::kKeys, F::kThreads>(k, rows_of<T>(p.k, b, kv_head, p.head_dim), memory.keys);
  if (kWithDk) gather<F::kKeys, F::kThreads>(v, rows_of<T>(p.v, b, kv_head, p.head_dim), memory.keys);

  const float score_scale = p.scale * Scores<T>::kUnit;
  const int row = 16 * warp_index(), column = 2 * (lane_index() % 4);
  // The row of a key that does not exist may hold anything, NaN too: it is not stored.
  float bias[2], dbias_acc[2] = {}, dk_acc[1][kWithDk ? kDim / 8 : 1][4] = {},
                 dv_acc[1][kWithDv ? kDim / 8 : 1][4] = {};
  for (int half = 0; half < 2; ++half)
    bias[half] = bias_of(load_shared(memory.keys + row + 8 * half + lane_index() / 4));

  for (int member = 0; member < group; ++member) {
    const int64_t h = kv_head * group + member;
    const TokenList queries = token_list(p.queries, b, h, p.seqlen_q);
    const float2* lse_delta = reinterpret_cast<const float2*>(p.terms) + (b * p.heads_q + h) * p.seqlen_q;
    const Rows<T> q_rows = rows_of<T>(p.q, b, h, p.head_dim);
    const Rows<T> dout_rows = rows_of<T>(p.dout, b, h, p.head_dim);
    stream<F::kQueries, float2>(
        memory.stream, 0, queries.count,
        [&](int place) { return lse_delta[place].x == kInfinity ? kNoToken : queries[place]; },
        [&](int place, int token) { return token == kNoToken ? float2{kInfinity, 0.0f} : lse_delta[place]; },
        [&](int buffer, const int* tokens) {
          gather<F::kQueries, F::kThreads>(Tile<T, kDim>{memory.q[buffer]}, q_rows, tokens);
          gather<F::kQueries, F::kThreads>(Tile<T, kDim>{memory.dout[buffer]}, dout_rows, tokens);
        },
        [&](int buffer, const float2* terms) {
          const Tile<T, kDim> q{memory.q[buffer]}, dout{memory.dout[buffer]};
          float s[1][kN][4] = {};
          add_nt(s, k, row, q);
#pragma unroll
          for (int n = 0; n < kN; ++n)
#pragma unroll
            for (int i = 0; i < 4; ++i)
              s[0][n][i] = probability<T>(s[0][n][i], score_scale, bias[i / 2],
                                          load_shared(&terms[8 * n + column + i % 2].x));
          if constexpr (kWithDv) add_nn(dv_acc, s, dout);
          if constexpr (kWithDk) {
            float ds[1][kN][4] = {};
            add_nt(ds, v, row, dout);
#pragma unroll
            for (int n = 0; n < kN; ++n)
#pragma unroll
              for (int i = 0; i < 4; ++i) {
                ds[0][n][i] = s[0][n][i] * (ds[0][n][i] - load_shared(&terms[8 * n + column + i % 2].y));
                dbias_acc[i / 2] += ds[0][n][i];
              }
            add_nn(dk_acc, ds, q);
          }
        });
  }
  wait_copies();
  block_barrier();  // no thread gathers or reads any more

  // From here on the tokens to write.
  for (int i = thread_index(); i < F::kKeys; i += F::kThreads) store_shared(memory.keys + i, keys[first + i]);
  block_barrier();
  if constexpr (kWithDk) {
    scatter<T, kDim, 1>(dk_acc, [&](int, int) { return p.scale; }, k, row, memory.keys, dk);
    for (int half = 0; half < 2; ++half) {
      const float sum = row_sum(dbias_acc[half]);
      const int token = load_shared(memory.keys + row + 8 * half + lane_index() / 4);
      if (token != kNoToken && lane_index() % 4 == 0) store_dbias(token, sum);
    }
  }
  if constexpr (kWithDv) scatter<T, kDim, 1>(dv_acc, [](int, int) { return 1.0f; }, v, row, memory.keys, dv);
}

}  // namespace

int launch_dkdv(const CudaBackwardParams& given, void* stream) {
  CudaBackwardParams p = given;
  if (p.packed_q.data != nullptr) p.q = p.packed_q, p.dout = p.packed_dout, p.queries.indices = nullptr;
  return for_instance(p, [&](auto t, auto width) {
    using T = decltype(t);
    constexpr int kDim = decltype(width)::value;
    using F = ForKeys<T, kDim>;
    const int64_t blocks = p.batch * p.heads_kv * ceil_div(p.seqlen_k, F::kKeys);
    const int shared = static_cast<int>(sizeof(typename F::Memory));
    if constexpr (kDim <= 128) {
      return launch(dkdv_kernel<T, kDim, true, true>, blocks, F::kThreads, shared, p, stream);
    } else {
      const int error = launch(dkdv_kernel<T, kDim, false, true>, blocks, F::kThreads, shared, p, stream);
      if (error != 0) return error;
      return launch(dkdv_kernel<T, kDim, true, false>, blocks, F::kThreads, shared, p, stream);
    }
  });
}

int launch_cuda_bwd(const CudaBackwardParams& p, void* stream) {
  for (const auto step : {launch_delta, launch_dkdv, launch_dq}) {
    const int error = step(p, stream);
    if (error != 0) return error;
  }
  return 0;
}

}  // namespace maskattn
