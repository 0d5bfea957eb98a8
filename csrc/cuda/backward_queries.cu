// SPDX-License-Identifier: BSD-3-Clause
//
// What the backward pass computes for queries: delta, and dq.
#include "backward.cuh"
#include "pack.cuh"

namespace maskattn {
namespace {

constexpr int kDeltaThreads = 128;

// A warp owns one selected query. A query that sees no key has lse -inf; it is written as +inf here, which makes
// all its p exactly 0, and tells the other kernels not to read it. If the keys are to stream packed queries, the
// block also packs q and dout of its queries.
template <typename T>
__global__ __launch_bounds__(kDeltaThreads) void delta_kernel(const __grid_constant__ CudaBackwardParams p) {
  constexpr int kQueries = kDeltaThreads / kWarpSize;
  const uint32_t blocks = static_cast<uint32_t>(ceil_div(p.seqlen_q, kQueries));
  const uint32_t heads = static_cast<uint32_t>(p.heads_q), bh = block_index() / blocks;
  const int64_t b = bh / heads, h = bh % heads, place = block_index() % blocks * kQueries + warp_index();
  const TokenList queries = token_list(p.queries, b, h, p.seqlen_q);
  if (p.packed_q.data != nullptr) {
    const int first = static_cast<int>(place) - warp_index();
    pack_rows<T, kQueries, kDeltaThreads>(p.q, p.packed_q, b, h, p.head_dim, queries, first);
    pack_rows<T, kQueries, kDeltaThreads>(p.dout, p.packed_dout, b, h, p.head_dim, queries, first);
  }
  if (place >= queries.count) return;

  const int token = queries[static_cast<int>(place)];
  const float lse = token == kNoToken ? -kInfinity : p.lse.data[bh * p.seqlen_q + token];
  float delta = 0.0f;
  if (lse != -kInfinity) {
    const T* out = rows_of<T>(p.out, b, h, p.head_dim).row(token);
    const T* dout = rows_of<T>(p.dout, b, h, p.head_dim).row(token);
    for (int i = lane_index(); i < p.head_dim; i += kWarpSize) delta += to_float(dout[i]) * to_float(out[i]);
  }
  delta = row_sum(delta);
#pragma unroll
  for (int mask = 4; mask < kWarpSize; mask *= 2) delta += shuffle_xor(delta, mask);
  if (lane_index() > 0) return;
  if (p.dlse.data != nullptr && lse != -kInfinity)
    delta -= p.dlse.data[b * p.dlse.stride_b + h * p.dlse.stride_h + token * p.dlse.stride_n];
  const float level = lse == -kInfinity ? kInfinity : lse * Scores<T>::kUnit;
  reinterpret_cast<float2*>(p.terms)[bh * p.seqlen_q + place] = float2{level, delta};
}

template <typename T, int kDim>
struct ForQueries : Backward<T, kDim> {
  using Backward<T, kDim>::kRowBytes;
  static constexpr int kM = sizeof(T) == 2 && kRowBytes <= 256 ? 2 : 1;
  static constexpr int kQueries = 16 * kM * Backward<T, kDim>::kWarps;
  static constexpr int kKeys = kRowBytes <= 128 ? 32 : kM == 2 ? 16 : Backward<T, kDim>::kStreamed;

  struct Memory {
    alignas(128) char q[kQueries * kRowBytes];
    char dout[kQueries * kRowBytes];
    char k[2][kKeys * kRowBytes];
    char v[2][kKeys * kRowBytes];
    StreamMemory<kKeys, float> stream;
    int queries[kQueries];
  };
  static_assert(sizeof(Memory) <= 99 * 1024);
};

// One block owns kQueries selected queries of one head, and the zeros among kQueries tokens.
template <typename T, int kDim>
__global__ __launch_bounds__(ForQueries<T, kDim>::kThreads,
                             2) void dq_kernel(const __grid_constant__ CudaBackwardParams p) {
  using F = ForQueries<T, kDim>;
  constexpr int kM = F::kM, kN = F::kKeys / 8;
  auto& memory = *reinterpret_cast<typename F::Memory*>(shared_memory());
  const uint32_t blocks = static_cast<uint32_t>(ceil_div(p.seqlen_q, F::kQueries));
  const uint32_t heads = static_cast<uint32_t>(p.heads_q), bh = block_index() / blocks;
  const int first = static_cast<int>(block_index() % blocks) * F::kQueries;
  const int64_t b = bh / heads, h = bh % heads, kv_head = h / (p.heads_q / p.heads_kv);

  const TokenList queries = token_list(p.queries, b, h, p.seqlen_q);
  const Rows<T> dq = rows_of<T>(p.dq, b, h, p.head_dim);
  for_unselected<F::kQueries, F::kThreads>(queries, first, memory.queries,
                                           [&](int token) { store_zeros(dq, token); });
  if (first >= queries.count) return;

  // Queries that see no key are not read, but their dq is written.
  const float2* lse_delta = reinterpret_cast<const float2*>(p.terms) + bh * p.seqlen_q;
  for (int i = thread_index(); i < F::kQueries; i += F::kThreads) {
    const int place = first + i;
    store_shared(memory.queries + i,
                 place < queries.count && lse_delta[place].x != kInfinity ? queries[place] : kNoToken);
  }
  block_barrier();
  const Tile<T, kDim> q{memory.q}, dout{memory.dout};
  gather<F::kQueries, F::kThreads>(q, rows_of<T>(p.q, b, h, p.head_dim), memory.queries);
  gather<F::kQueries, F::kThreads>(dout, rows_of<T>(p.dout, b, h, p.head_dim), memory.queries);

  const TokenList keys = token_list(p.keys, b, kv_head, p.seqlen_k);
  const Rows<T> k_rows = rows_of<T>(p.k, b, kv_head, p.head_dim);
  const Rows<T> v_rows = rows_of<T>(p.v, b, kv_head, p.head_dim);
  const KeyBias bias = key_bias_of<T>(p, b, kv_head);
  const float score_scale = p.scale * Scores<T>::kUnit;
  const int row = 16 * kM * warp_index(), column = 2 * (lane_index() % 4);

  float lse[kM][2], delta[kM][2], acc[kM][kDim / 8][4] = {};
#pragma unroll
  for (int m = 0; m < kM; ++m)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int place = first + row + 16 * m + 8 * half + lane_index() / 4;
      const float2 term = place < queries.count ? lse_delta[place] : float2{kInfinity, 0.0f};
      lse[m][half] = term.x, delta[m][half] = term.y;
    }

  stream<F::kKeys, float>(
      memory.stream, 0, keys.count, [&](int place) { return bias.in_play(keys[place]); },
      [&](int, int token) { return bias(token); },
      [&](int buffer, const int* tokens) {
        gather<F::kKeys, F::kThreads>(Tile<T, kDim>{memory.k[buffer]}, k_rows, tokens);
        gather<F::kKeys, F::kThreads>(Tile<T, kDim>{memory.v[buffer]}, v_rows, tokens);
      },
      [&](int buffer, const float* terms) {
        float s[kM][kN][4] = {}, ds[kM][kN][4] = {};
        add_nt(s, q, row, Tile<T, kDim>{memory.k[buffer]});
        add_nt(ds, dout, row, Tile<T, kDim>{memory.v[buffer]});
#pragma unroll
        for (int n = 0; n < kN; ++n) {
          const float2 term = load_shared(reinterpret_cast<const float2*>(terms + 8 * n + column));
#pragma unroll
          for (int m = 0; m < kM; ++m)
#pragma unroll
            for (int i = 0; i < 4; ++i) {
              const float p_ij =
                  probability<T>(s[m][n][i], score_scale, i % 2 == 0 ? term.x : term.y, lse[m][i / 2]);
              ds[m][n][i] = p_ij * (ds[m][n][i] - delta[m][i / 2]);
            }
        }
        add_nn(acc, ds, Tile<T, kDim>{memory.k[buffer]});
      });
  wait_copies();
  block_barrier();  // no thread gathers or reads any more

  // From here on the tokens to write, which include queries that see no key.
  for (int i = thread_index(); i < F::kQueries; i += F::kThreads)
    store_shared(memory.queries + i, queries[first + i]);
  block_barrier();
  scatter<T, kDim, kM>(acc, [&](int, int) { return p.scale; }, q, row, memory.queries, dq);
}

}  // namespace

int64_t lay_out_cuda_bwd(CudaBackwardParams& p, void* memory) {
  Workspace workspace(memory);
  p.terms = workspace.take<float>(2 * p.batch * p.heads_q * p.seqlen_q);
  if (is_packed(p.q, p.dout, p.seqlen_k)) {
    p.packed_q = workspace.take_rows(p, p.heads_q, p.seqlen_q);
    p.packed_dout = workspace.take_rows(p, p.heads_q, p.seqlen_q);
  }
  p.packed = take_keys(workspace, p);
  if (p.splits > 1) {
    const int width = for_instance(p, [](auto, auto tile) { return decltype(tile)::value; });
    const int64_t parts = p.splits * p.batch * p.heads_kv * p.seqlen_k;
    p.part_dk = workspace.take<float>(parts * width);
    p.part_dv = workspace.take<float>(parts * width);
    if (p.dbias.data != nullptr) p.part_dbias = workspace.take<float>(parts);
  }
  return workspace.bytes();
}

int launch_delta(const CudaBackwardParams& p, void* stream) {
  return for_instance(p, [&](auto t, auto) {
    return launch(delta_kernel<decltype(t)>, p.batch * p.heads_q * ceil_div(p.seqlen_q, kDeltaThreads / kWarpSize),
                  kDeltaThreads, 0, p, stream);
  });
}

int launch_dq(const CudaBackwardParams& given, void* stream) {
  CudaBackwardParams p = given;
  const int pack_error = pack_keys(p, stream);
  if (pack_error != 0) return pack_error;
  return for_instance(p, [&](auto t, auto width) {
    using T = decltype(t);
    constexpr int kDim = decltype(width)::value;
    using F = ForQueries<T, kDim>;
    return launch(dq_kernel<T, kDim>, p.batch * p.heads_q * ceil_div(p.seqlen_q, F::kQueries), F::kThreads,
                  static_cast<int>(sizeof(typename F::Memory)), p, stream);
  });
}

}  // namespace maskattn
