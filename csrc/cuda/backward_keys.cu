// SPDX-License-Identifier: BSD-3-Clause
//
// What the backward pass computes for keys: dk, dv and dbias.
//
// One block owns kKeys selected keys of one kv head, and the zeros among kKeys tokens. They are gathered once and
// stay; the selected queries of all heads of the group stream by, packed or not (pack.cuh). Few keys under many
// queries would leave most of the chip idle. Then `splits` blocks share the queries of a block of keys, each
// writes its own sums into a workspace, and combine_keys_kernel adds them up in their order.
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
  const uint32_t kv_heads = static_cast<uint32_t>(p.heads_kv), splits = static_cast<uint32_t>(p.splits);
  const int first = static_cast<int>(block_index() % blocks) * F::kKeys;
  const int split = static_cast<int>(block_index() / blocks % splits);
  const uint32_t bh = block_index() / blocks / splits;
  const int64_t b = bh / kv_heads, kv_head = bh % kv_heads;
  const int group = static_cast<int>(p.heads_q / p.heads_kv);

  const TokenList keys = token_list(p.keys, b, kv_head, p.seqlen_k);
  const Rows<T> dk = rows_of<T>(p.dk, b, kv_head, p.head_dim);
  const Rows<T> dv = rows_of<T>(p.dv, b, kv_head, p.head_dim);
  const bool with_dbias = kWithDk && p.dbias.data != nullptr;
  if (split == 0)
    for_unselected<F::kKeys, F::kThreads>(keys, first, memory.keys, [&](int token) {
      if (kWithDk) store_zeros(dk, token);
      if (kWithDv) store_zeros(dv, token);
      if (with_dbias && lane_index() == 0) p.dbias.data[bh * p.seqlen_k + token] = 0.0f;
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
    const int share = static_cast<int>(ceil_div(ceil_div(queries.count, F::kQueries), p.splits)) * F::kQueries;
    const int begin = split * share;
    stream<F::kQueries, float2>(
        memory.stream, begin, begin + share < queries.count ? begin + share : queries.count,
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
  const int64_t part = block_index() / blocks * p.seqlen_k + first;
  const auto store = [&](const auto& acc, float factor, const Tile<T, kDim>& tile, const Rows<T>& to,
                         float* parts) {
    if (p.splits == 1)
      scatter<T, kDim, 1>(acc, [=](int, int) { return factor; }, tile, row, memory.keys, to);
    else
      store_part<kDim, 1>(acc, [=](int, int) { return factor; }, row, memory.keys, parts + part * kDim);
  };
  if constexpr (kWithDk) {
    store(dk_acc, p.scale, k, dk, p.part_dk);
    for (int half = 0; half < 2; ++half) {
      const float sum = row_sum(dbias_acc[half]);
      const int r = row + 8 * half + lane_index() / 4, token = load_shared(memory.keys + r);
      if (!with_dbias || token == kNoToken || lane_index() % 4 != 0) continue;
      if (p.splits == 1)
        p.dbias.data[bh * p.seqlen_k + token] = sum;
      else
        p.part_dbias[part + r] = sum;
    }
  }
  if constexpr (kWithDv) store(dv_acc, 1.0f, v, dv, p.part_dv);
}

// Adds the sums of all splits up, in the order of the splits. A warp owns one selected key.
template <typename T, int kDim>
__global__ __launch_bounds__(kCombineThreads) void combine_keys_kernel(
    const __grid_constant__ CudaBackwardParams p) {
  constexpr int kKeys = kCombineThreads / kWarpSize;
  const uint32_t blocks = static_cast<uint32_t>(ceil_div(p.seqlen_k, kKeys));
  const uint32_t kv_heads = static_cast<uint32_t>(p.heads_kv), bh = block_index() / blocks;
  const int64_t b = bh / kv_heads, h = bh % kv_heads, place = block_index() % blocks * kKeys + warp_index();
  const TokenList keys = token_list(p.keys, b, h, p.seqlen_k);
  const int token = place < p.seqlen_k ? keys[static_cast<int>(place)] : kNoToken;
  if (token == kNoToken) return;

  const int64_t own = bh * p.splits * p.seqlen_k + place;
  const auto add_up = [&](const float* parts, const GpuView& result) {
    float sums[kDim / kWarpSize] = {};
    for (int split = 0; split < p.splits; ++split) {
      const float* part = parts + (own + split * p.seqlen_k) * kDim + lane_index();
#pragma unroll
      for (int i = 0; i < kDim / kWarpSize; ++i) sums[i] += part[i * kWarpSize];
    }
    T* to = rows_of<T>(result, b, h, p.head_dim).row(token);
#pragma unroll
    for (int i = 0; i < kDim / kWarpSize; ++i) {
      const int column = i * kWarpSize + lane_index();
      if (column < p.head_dim) to[column] = from_float(sums[i], T{});
    }
  };
  add_up(p.part_dk, p.dk);
  add_up(p.part_dv, p.dv);
  if (p.dbias.data == nullptr || lane_index() > 0) return;
  float sum = 0.0f;
  for (int split = 0; split < p.splits; ++split) sum += p.part_dbias[own + split * p.seqlen_k];
  p.dbias.data[bh * p.seqlen_k + token] = sum;
}

}  // namespace

int cuda_bwd_splits(const CudaParams& p, const Chip& chip) {
  return for_instance(p, [&](auto t, auto width) {
    using F = ForKeys<decltype(t), decltype(width)::value>;
    int64_t blocks = p.batch * p.heads_kv * ceil_div(p.seqlen_k, F::kKeys), queries = p.seqlen_q;
    if (p.keys.counts != nullptr) blocks = ceil_div(blocks, kLikelyKeep);  // the others have nothing to do
    if (p.queries.counts != nullptr) queries /= kLikelyKeep;
    return choose_splits(blocks, blocks_at_a_time(chip, sizeof(typename F::Memory)), queries / F::kQueries);
  });
}

int launch_dkdv(const CudaBackwardParams& given, void* stream) {
  CudaBackwardParams p = given;
  if (p.packed_q.data != nullptr) p.q = p.packed_q, p.dout = p.packed_dout, p.queries.indices = nullptr;
  return for_instance(p, [&](auto t, auto width) {
    using T = decltype(t);
    constexpr int kDim = decltype(width)::value;
    using F = ForKeys<T, kDim>;
    const int64_t heads = p.batch * p.heads_kv, blocks = heads * ceil_div(p.seqlen_k, F::kKeys) * p.splits;
    const int shared = static_cast<int>(sizeof(typename F::Memory));
    int error = 0;
    if constexpr (kDim <= 128) {
      error = launch(dkdv_kernel<T, kDim, true, true>, blocks, F::kThreads, shared, p, stream);
    } else {
      error = launch(dkdv_kernel<T, kDim, false, true>, blocks, F::kThreads, shared, p, stream);
      if (error != 0) return error;
      error = launch(dkdv_kernel<T, kDim, true, false>, blocks, F::kThreads, shared, p, stream);
    }
    if (error != 0 || p.splits == 1) return error;
    return launch(combine_keys_kernel<T, kDim>, heads * ceil_div(p.seqlen_k, kCombineThreads / kWarpSize),
                  kCombineThreads, 0, p, stream);
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
