// SPDX-License-Identifier: BSD-3-Clause
//
// The forward pass: out and lse of the selected queries over the selected keys, zeros elsewhere.
//
//     s_j = scale <q, k_j> + key_bias_j
//     lse = log sum_j exp(s_j)     out = sum_j exp(s_j - lse) v_j
//
// One block owns kQueries selected queries of one head, and the zeros among kQueries tokens. Its queries stay, the
// selected keys stream by (stream.cuh). Only the running maximum, sum and output of the online softmax (Milakov
// and Gimelshein, arXiv:1805.02867) are kept.
//
// Few queries over many keys would leave most of the chip idle. Then `splits` blocks share the keys of a block of
// queries, each writes its own (out, lse) into a workspace, and combine_kernel weighs them. How many is decided
// from sizes alone, never from the mask, so results are repeatable.
//
// With kFromMasks there is no list of selected tokens yet: sequences are short, and every block makes its own
// lists in shared memory, which saves the launch of select_tokens. All else is the same, in the same order, to the
// same bits.
#include "pack.cuh"
#include "scores.cuh"
#include "stream.cuh"

namespace maskattn {
namespace {

template <typename T, int kDim>
struct Forward {
  static constexpr int kRowBytes = Tile<T, kDim>::kRowBytes;
  static constexpr int kWarps = kRowBytes > 512 ? 2 : 4;
  static constexpr int kThreads = kWarps * kWarpSize;
  static constexpr int kM = sizeof(T) == 2 && kRowBytes <= 128 ? 2 : 1;  // blocks of 16 rows of a warp
  static constexpr int kQueries = 16 * kM * kWarps;
  static constexpr int kKeys = kRowBytes > 512 ? 16 : kRowBytes > 128 ? 32 : 64;

  struct Memory {  // at most 99 KiB, which every chip has
    alignas(128) char q[kQueries * kRowBytes];
    char k[2][kKeys * kRowBytes];
    char v[2][kKeys * kRowBytes];
    StreamMemory<kKeys, float> stream;
    int queries[kQueries];  // tokens
  };
  struct ShortMemory : Memory {
    int32_t query_list[kShort], key_list[kShort];
  };
  static_assert(sizeof(ShortMemory) <= 99 * 1024);
  static_assert(kKeys <= kThreads);
};

// A block writes its results by place in the index where the keys are split, else to the rows of the tokens.
template <typename T, int kDim, bool kFromMasks>
__global__ __launch_bounds__(Forward<T, kDim>::kThreads,
                             2) void fwd_kernel(const __grid_constant__ CudaForwardParams p) {
  using F = Forward<T, kDim>;
  constexpr int kM = F::kM, kN = F::kKeys / 8;
  auto& memory = *reinterpret_cast<typename F::ShortMemory*>(shared_memory());  // the lists only with kFromMasks
  const uint32_t blocks = static_cast<uint32_t>(ceil_div(p.seqlen_q, F::kQueries));
  const uint32_t heads = static_cast<uint32_t>(p.heads_q), splits = static_cast<uint32_t>(p.splits);
  const int first = static_cast<int>(block_index() % blocks) * F::kQueries;
  const int split = static_cast<int>(block_index() / blocks % splits);
  const uint32_t bh = block_index() / blocks / splits;
  const int64_t b = bh / heads, h = bh % heads, kv_head = h / (p.heads_q / p.heads_kv);

  TokenList queries, keys;
  if constexpr (kFromMasks) {  // barriers follow before the first read of either list
    queries = list_mask<F::kThreads>(p.query_mask, b, h, p.seqlen_q, memory.query_list);
    keys = list_mask<F::kThreads>(p.key_mask, b, kv_head, p.seqlen_k, memory.key_list);
  } else {
    queries = token_list(p.queries, b, h, p.seqlen_q);
  }
  const Rows<T> out = rows_of<T>(p.out, b, h, p.head_dim);
  float* lse = p.lse.data + bh * p.seqlen_q;
  if (split == 0)
    for_unselected<F::kQueries, F::kThreads>(queries, first, memory.queries, [&](int token) {
      store_zeros(out, token);
      if (lane_index() == 0) lse[token] = -kInfinity;
    });
  if (first >= queries.count) return;

  for (int i = thread_index(); i < F::kQueries; i += F::kThreads)
    store_shared(memory.queries + i, queries[first + i]);
  block_barrier();
  const Tile<T, kDim> q{memory.q};
  gather<F::kQueries, F::kThreads>(q, rows_of<T>(p.q, b, h, p.head_dim), memory.queries);

  if constexpr (!kFromMasks) keys = token_list(p.keys, b, kv_head, p.seqlen_k);
  const int share = static_cast<int>(ceil_div(ceil_div(keys.count, F::kKeys), p.splits)) * F::kKeys;
  const int begin = split * share;
  keys.count = begin + share < keys.count ? begin + share : keys.count;
  const Rows<T> k_rows = rows_of<T>(p.k, b, kv_head, p.head_dim);
  const Rows<T> v_rows = rows_of<T>(p.v, b, kv_head, p.head_dim);
  const KeyBias bias = key_bias_of<T>(p, b, kv_head);
  const float score_scale = p.scale * Scores<T>::kUnit;
  const int row = 16 * kM * warp_index(), column = 2 * (lane_index() % 4);

  float acc[kM][kDim / 8][4] = {};
  float top[kM][2],
      total[kM][2] = {};  // running maximum of the scores; this lane's part of the sum of exp(s - top)
  for (auto& of_block : top) of_block[0] = of_block[1] = -kInfinity;

  stream<F::kKeys, float>(
      memory.stream, begin, keys.count, [&](int place) { return bias.in_play(keys[place]); },
      [&](int, int token) { return bias(token); },
      [&](int buffer, const int* tokens) {
        gather<F::kKeys, F::kThreads>(Tile<T, kDim>{memory.k[buffer]}, k_rows, tokens);
        gather<F::kKeys, F::kThreads>(Tile<T, kDim>{memory.v[buffer]}, v_rows, tokens);
      },
      [&](int buffer, const float* terms) {
        float s[kM][kN][4] = {};
        add_nt(s, q, row, Tile<T, kDim>{memory.k[buffer]});
#pragma unroll
        for (int n = 0; n < kN; ++n) {
          const float2 term = load_shared(reinterpret_cast<const float2*>(terms + 8 * n + column));
#pragma unroll
          for (int m = 0; m < kM; ++m)
#pragma unroll
            for (int i = 0; i < 4; ++i) s[m][n][i] = s[m][n][i] * score_scale + (i % 2 == 0 ? term.x : term.y);
        }
#pragma unroll
        for (int m = 0; m < kM; ++m)
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            float next = top[m][half];
#pragma unroll
            for (int n = 0; n < kN; ++n) next = fmaxf(next, fmaxf(s[m][n][2 * half], s[m][n][2 * half + 1]));
            next = row_max(next);
            const float level = next == -kInfinity ? 0.0f : next;  // -inf - -inf would be NaN
            const float shrink = Scores<T>::exp(top[m][half] - level);
            top[m][half] = next;
            float sum = 0.0f;
#pragma unroll
            for (int n = 0; n < kN; ++n)
#pragma unroll
              for (int i = 2 * half; i < 2 * half + 2; ++i) {
                s[m][n][i] = Scores<T>::exp(s[m][n][i] - level);
                sum += s[m][n][i];
              }
            total[m][half] = total[m][half] * shrink + sum;
#pragma unroll
            for (int n = 0; n < kDim / 8; ++n) {
              acc[m][n][2 * half] *= shrink;
              acc[m][n][2 * half + 1] *= shrink;
            }
          }
        add_nn(acc, s, Tile<T, kDim>{memory.v[buffer]});
      });
  if (begin >= keys.count) {  // no key, no loop: the copies of the queries must still be waited for
    wait_copies();
    block_barrier();
  }

  const int64_t part = (split * p.batch * p.heads_q + bh) * p.seqlen_q + first;
#pragma unroll
  for (int m = 0; m < kM; ++m)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float sum = row_sum(total[m][half]);
      sum = sum == 0.0f ? 1.0f : sum;  // no key: out 0, lse -inf; NaN stays
      total[m][half] = 1.0f / sum;
      const int r = row + 16 * m + 8 * half + lane_index() / 4;
      const int token = load_shared(memory.queries + r);
      if (token == kNoToken || lane_index() % 4 != 0) continue;
      const float lse_row = top[m][half] / Scores<T>::kUnit + logf(sum);
      if (p.splits == 1)
        lse[token] = lse_row;
      else
        p.part_lse[part + r] = lse_row;
    }
  const auto factor = [&](int m, int half) { return total[m][half]; };
  if (p.splits == 1)
    scatter<T, kDim, kM>(acc, factor, q, row, memory.queries, out);
  else
    store_part<kDim, kM>(acc, factor, row, memory.queries, p.part_out + part * kDim);
}

// Adds the parts of all splits, weighed by exp(lse), in the order of the splits. A warp owns one selected query.
template <typename T, int kDim>
__global__ __launch_bounds__(kCombineThreads) void combine_kernel(const __grid_constant__ CudaForwardParams p) {
  constexpr int kQueries = kCombineThreads / kWarpSize;
  const uint32_t blocks = static_cast<uint32_t>(ceil_div(p.seqlen_q, kQueries));
  const uint32_t heads = static_cast<uint32_t>(p.heads_q), bh = block_index() / blocks;
  const int64_t b = bh / heads, h = bh % heads, place = block_index() % blocks * kQueries + warp_index();
  const TokenList queries = token_list(p.queries, b, h, p.seqlen_q);
  const int token = place < p.seqlen_q ? queries[static_cast<int>(place)] : kNoToken;
  if (token == kNoToken) return;

  const int64_t stride = p.batch * p.heads_q * p.seqlen_q, own = bh * p.seqlen_q + place;
  float top = -kInfinity;
  for (int split = 0; split < p.splits; ++split) top = fmaxf(top, p.part_lse[split * stride + own]);
  const float level = top == -kInfinity ? 0.0f : top;
  float total = 0.0f, acc[kDim / kWarpSize] = {};
  for (int split = 0; split < p.splits; ++split) {
    const float weight = exp2f((p.part_lse[split * stride + own] - level) * kLog2e);
    const float* part = p.part_out + (split * stride + own) * kDim + lane_index();
    total += weight;
#pragma unroll
    for (int i = 0; i < kDim / kWarpSize; ++i) acc[i] += weight * part[i * kWarpSize];
  }
  total = total == 0.0f ? 1.0f : total;
  if (lane_index() == 0) p.lse.data[bh * p.seqlen_q + token] = top + logf(total);
  T* out = rows_of<T>(p.out, b, h, p.head_dim).row(token);
#pragma unroll
  for (int i = 0; i < kDim / kWarpSize; ++i) {
    const int column = i * kWarpSize + lane_index();
    if (column < p.head_dim) out[column] = from_float(acc[i] / total, T{});
  }
}

// Whether masks are given in place of lists.
bool has_masks(const CudaForwardParams& p) { return p.query_mask.data != nullptr || p.key_mask.data != nullptr; }

}  // namespace

int cuda_fwd_splits(const CudaParams& p, const Chip& chip) {
  if (p.seqlen_k <= kShort) return 1;
  return for_instance(p, [&](auto t, auto width) {
    using F = Forward<decltype(t), decltype(width)::value>;
    const int64_t blocks = p.batch * p.heads_q * ceil_div(p.seqlen_q, F::kQueries);
    return choose_splits(blocks, blocks_at_a_time(chip, sizeof(typename F::Memory)), p.seqlen_k / F::kKeys);
  });
}

int64_t lay_out_cuda_fwd(CudaForwardParams& p, void* memory) {
  Workspace workspace(memory);
  if (p.splits > 1) {
    const int width = for_instance(p, [](auto, auto tile) { return decltype(tile)::value; });
    const int64_t parts = p.splits * p.batch * p.heads_q * p.seqlen_q;
    p.part_out = workspace.take<float>(parts * width);
    p.part_lse = workspace.take<float>(parts);
  }
  if (!has_masks(p)) p.packed = take_keys(workspace, p);
  return workspace.bytes();
}

int launch_cuda_fwd(const CudaForwardParams& given, void* stream) {
  CudaForwardParams p = given;
  const int pack_error = pack_keys(p, stream);
  if (pack_error != 0) return pack_error;
  return for_instance(p, [&](auto t, auto width) {
    using T = decltype(t);
    constexpr int kDim = decltype(width)::value;
    using F = Forward<T, kDim>;
    const int64_t rows = p.batch * p.heads_q;
    const int64_t blocks = rows * ceil_div(p.seqlen_q, F::kQueries) * p.splits;
    if (has_masks(p))
      return launch(fwd_kernel<T, kDim, true>, blocks, F::kThreads,
                    static_cast<int>(sizeof(typename F::ShortMemory)), p, stream);
    const int error = launch(fwd_kernel<T, kDim, false>, blocks, F::kThreads,
                             static_cast<int>(sizeof(typename F::Memory)), p, stream);
    if (error != 0 || p.splits == 1) return error;
    return launch(combine_kernel<T, kDim>, rows * ceil_div(p.seqlen_q, kCombineThreads / kWarpSize),
                  kCombineThreads, 0, p, stream);
  });
}

}  // namespace maskattn
