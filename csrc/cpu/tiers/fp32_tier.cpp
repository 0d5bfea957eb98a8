// SPDX-License-Identifier: BSD-3-Clause
//
// Masked attention with fp32 arithmetic, for one instruction set; compiled once per tier with MASKATTN_TIER
// naming it. fp16 and bf16 rows are widened while they are gathered.
//
// Scores live transposed, S^T[key][query], with vectors along the queries: maximum, exponential and row sum
// need no horizontal step, and gathered K and V rows are used as they lie, element by element, as the broadcast
// operand of gemm.h.
//
// Forward, one block of kBlockQ queries (FlashAttention, Dao et al. 2022):
//     S^T = K Q^T + bias;  m = running max;  P^T = exp(S^T - m);  O^T = O^T * exp(m_old - m) + V^T P^T
// Scores stay in natural units, so that the weight of a lone key is exactly 1 in both passes.
// Backward, one chunk of keys against every query block: the five products of FlashAttention, with dQ left as
// one partial sum per chunk, which reduce_dq adds up in chunk order. So nothing depends on the thread count.
#include "../engine.h"
#include "../integers.h"
#include "convert.h"
#include "gemm.h"
#include "rows.h"

namespace maskattn {
namespace {

constexpr int kVectorsQ = 3;
constexpr int kBlockQ = kVectorsQ * kLanes;
constexpr int kBlockK = 96;
constexpr int kForwardQ = kBlockQ, kBackwardQ = kBlockQ, kStepQ = kLanes;  // for table.h

// One vector more than head_dim needs keeps rows that are read side by side out of the same cache set.
int64_t padded(int head_dim) { return round_up(head_dim, kLanes); }
int64_t packed_row(int head_dim) { return padded(head_dim) + kLanes; }

// Packed keys: K (count, packed_row), V (count, packed_row), bias (count).
struct KeyRows {
  float *k, *v, *bias;
  KeyRows(void* data, int64_t count, int head_dim)
      : k(static_cast<float*>(data)),
        v(k + count * packed_row(head_dim)),
        bias(v + count * packed_row(head_dim)) {}
};

int64_t packed_keys_bytes(int head_dim, int64_t keys) { return keys * (2 * packed_row(head_dim) + 1) * 4; }

// Gathers keys [begin, end) of block.keys (a PackKeysBlock or KeyChunk) into rows first, first + 1, ...
template <class Block>
void gather_keys(const Block& block, const KeyRows& rows, int64_t first) {
  const int64_t row = packed_row(block.head_dim);
  for (int64_t i = block.begin, j = first; i < block.end; ++i, ++j) {
    const int64_t token = block.keys[i];
    load_row(block.dtype, block.k.row(token), 1.0f, rows.k + j * row, block.head_dim, block.head_dim);
    load_row(block.dtype, block.v.row(token), 1.0f, rows.v + j * row, block.head_dim, block.head_dim);
    rows.bias[j] = block.bias ? block.bias[token * block.bias_stride] : 0.0f;
  }
}

void pack_keys(const PackKeysBlock& block) {
  gather_keys(block, KeyRows(block.packed.data, block.packed.count, block.head_dim), block.begin);
}

int64_t forward_scratch_bytes(int head_dim) { return 4 * kBlockQ * (3 * padded(head_dim) + kBlockK); }

// Running maximum, row sum and the rescaling of what was summed under an older maximum, for one vector of
// queries. The maximum in use moves only when a score exceeds it by e^kSlack, so that most blocks rescale
// nothing (FlashAttention-4's lazy rescaling); the result is exact either way.
struct OnlineSoftmax {
  static constexpr float kSlack = 5.5f;
  Vec max = splat(-INFINITY);
  Vec sum{};

  // The subtrahend of the exponent: never -inf, so that -inf - (-inf) does not make a NaN of "no weight".
  Vec reference() const { return select(max == -INFINITY, Vec{}, max); }

  // Returns whether `factor` has to be applied to the sums so far.
  bool update(Vec block_max, Vec* factor) {
    if (!any(block_max > max + kSlack)) return false;
    const Vec old = max;
    max = maximum(block_max, max);
    *factor = exp2((old - reference()) * kLog2e);
    sum *= *factor;
    return true;
  }
};

void forward_block(const ForwardBlock& block, void* scratch) {
  const int head_dim = block.head_dim;
  const int64_t width = padded(head_dim), row = packed_row(head_dim);
  const int count = static_cast<int>(block.end - block.begin);
  const int vectors = (count + kLanes - 1) / kLanes;
  auto* rows = static_cast<float*>(scratch);  // (kBlockQ, width): Q, at the end O
  float* qt = rows + kBlockQ * width;         // (width, kBlockQ)
  float* ot = qt + width * kBlockQ;           // (width, kBlockQ)
  float* st = ot + width * kBlockQ;           // (kBlockK, kBlockQ): S^T, then P^T
  const KeyRows keys(block.keys.data, block.keys.count, head_dim);

  gather_rows(block.dtype, block.q, block.queries, block.begin, count, vectors * kLanes, head_dim, width,
              block.scale, rows);
  transpose(vectors * kLanes, width, rows, width, qt, kBlockQ);

  std::memset(ot, 0, sizeof(float) * width * kBlockQ);

  OnlineSoftmax softmax[kVectorsQ];
  for (int64_t begin = 0; begin < block.keys.count; begin += kBlockK) {
    const int64_t n = min_of(block.keys.count - begin, kBlockK);
    gemm<Mode::kBias, Operand::kFar>(n, vectors, head_dim, keys.k + begin * row, row, 1, qt, kBlockQ, st, kBlockQ,
                                     keys.bias + begin);
    for (int v = 0; v < vectors; ++v) {
      float* s = st + v * kLanes;
      Vec block_max = load(s);
      for (int64_t j = 1; j < n; ++j) block_max = maximum(load(s + j * kBlockQ), block_max);
      Vec factor;
      if (softmax[v].update(block_max, &factor))
        for (int d = 0; d < head_dim; ++d) {
          float* o = ot + d * kBlockQ + v * kLanes;
          store(o, load(o) * factor);
        }
      const Vec reference = softmax[v].reference();
      for (int64_t j = 0; j < n; ++j) {
        const Vec p = exp2((load(s + j * kBlockQ) - reference) * kLog2e);
        store(s + j * kBlockQ, p);
        softmax[v].sum += p;
      }
    }
    gemm<Mode::kAdd, Operand::kFar>(head_dim, vectors, n, keys.v + begin * row, 1, row, st, kBlockQ, ot, kBlockQ);
  }

  float inverse[kBlockQ];
  for (int i = 0; i < count; ++i) {
    const OnlineSoftmax& s = softmax[i / kLanes];
    const float sum = s.sum[i % kLanes];
    inverse[i] = inverse_sum(sum);
    block.lse[block.queries[block.begin + i]] =
        sum == 0.0f ? -INFINITY : s.reference()[i % kLanes] + std::log(sum);
  }
  transpose(width, vectors * kLanes, ot, kBlockQ, rows, width);
  scatter_rows(
      rows, width, count, [&](int64_t i) { return inverse[i]; }, block.dtype, head_dim, block.out, block.queries,
      block.begin);
}

// ---- backward ----

// A packed query block; q carries the scale.
struct QueryRows {
  float *q, *dout;     // (kBlockQ, width)
  float *lse, *delta;  // (kBlockQ): +inf where a query has no weight, which makes P = 0
  QueryRows(void* data, int64_t width)
      : q(static_cast<float*>(data)),
        dout(q + kBlockQ * width),
        lse(dout + kBlockQ * width),
        delta(lse + kBlockQ) {}
};

int64_t packed_queries_bytes(int head_dim) { return 4 * (2 * kBlockQ * padded(head_dim) + 2 * kBlockQ); }

void pack_queries(const PackQueriesBlock& block) {
  const int head_dim = block.head_dim;
  const int64_t width = padded(head_dim);
  const int count = static_cast<int>(block.end - block.begin);
  const QueryRows packed(block.packed, width);
  gather_rows(block.dtype, block.dout, block.queries, block.begin, count, kBlockQ, head_dim, width, 1.0f,
              packed.dout);
  gather_rows(block.dtype, block.q, block.queries, block.begin, count, kBlockQ, head_dim, width, block.scale,
              packed.q);
  float out[kMaxHeadDim];
  for (int i = 0; i < kBlockQ; ++i) {
    packed.lse[i] = INFINITY;
    packed.delta[i] = 0.0f;
    if (i >= count) continue;
    const int64_t token = block.queries[block.begin + i];
    packed.lse[i] = block.lse[token] == -INFINITY ? INFINITY : block.lse[token];
    load_row(block.dtype, block.out.row(token), 1.0f, out, head_dim, static_cast<int>(width));
    packed.delta[i] = dot_rows(out, packed.dout + i * width, width) -
                      (block.dlse ? block.dlse[token * block.dlse_stride] : 0.0f);
  }
}

int64_t chunk_scratch_bytes(int head_dim, int64_t keys) {
  return packed_keys_bytes(head_dim, keys) + 4 * 2 * (kBlockK + padded(head_dim)) * kBlockQ;
}

int64_t dq_block_floats(int head_dim) { return padded(head_dim) * kBlockQ; }

// dK and dV of a chunk: (keys, width) each.
struct KeyGrads {
  float *dk, *dv;
  KeyGrads(float* data, int64_t keys, int64_t width) : dk(data), dv(data + keys * width) {}
};

int64_t key_grad_floats(int head_dim, int64_t keys) { return 2 * keys * padded(head_dim); }

void key_chunk(const KeyChunk& chunk, void* scratch) {
  const int head_dim = chunk.head_dim;
  const int64_t width = padded(head_dim), row = packed_row(head_dim), total = chunk.end - chunk.begin;
  auto* p_t = static_cast<float*>(scratch);  // (kBlockK, kBlockQ): S^T, then P^T
  float* ds_t = p_t + kBlockK * kBlockQ;     // (kBlockK, kBlockQ): dP^T, then dS^T
  float* qt = ds_t + kBlockK * kBlockQ;      // (width, kBlockQ): the vector operand of S^T
  float* dout_t = qt + width * kBlockQ;      // (width, kBlockQ): that of dP^T
  const KeyRows keys(dout_t + width * kBlockQ, total, head_dim);
  gather_keys(chunk, keys, 0);

  const KeyGrads grads(chunk.key_grads, total, width);
  for (int64_t b = 0; b < chunk.block_count; ++b) {
    const QueryRows queries(const_cast<char*>(chunk.packed_queries) + b * chunk.packed_stride, width);
    const int64_t count = chunk.blocks[b].end - chunk.blocks[b].begin, vectors = ceil_div(count, kLanes);
    float* dqt = chunk.dq_partial + b * dq_block_floats(head_dim);
    transpose(vectors * kLanes, width, queries.q, width, qt, kBlockQ);
    transpose(vectors * kLanes, width, queries.dout, width, dout_t, kBlockQ);
    if (total == 0) std::memset(dqt, 0, sizeof(float) * dq_block_floats(head_dim));
    for (int64_t begin = 0; begin < total; begin += kBlockK) {
      const int64_t n = min_of(total - begin, kBlockK);
      const float *k = keys.k + begin * row, *v = keys.v + begin * row;
      gemm<Mode::kBias, Operand::kFar>(n, vectors, head_dim, k, row, 1, qt, kBlockQ, p_t, kBlockQ,
                                       keys.bias + begin);
      gemm<Mode::kSet, Operand::kFar>(n, vectors, head_dim, v, row, 1, dout_t, kBlockQ, ds_t, kBlockQ);
      for (int64_t j = 0; j < n; ++j) {
        Vec dbias{};
        for (int64_t i = 0; i < vectors * kLanes; i += kLanes) {
          float *p = p_t + j * kBlockQ + i, *ds = ds_t + j * kBlockQ + i;
          const Vec weight = exp2((load(p) - load(queries.lse + i)) * kLog2e);
          const Vec grad = weight * (load(ds) - load(queries.delta + i));
          store(p, weight);
          store(ds, grad);
          dbias += grad;
        }
        if (chunk.dbias) chunk.dbias[begin + j] += sum_lanes(dbias);
      }
      gemm<Mode::kAdd, Operand::kNear>(n, width / kLanes, count, p_t, kBlockQ, 1, queries.dout, width,
                                       grads.dv + begin * width, width);
      gemm<Mode::kAdd, Operand::kNear>(n, width / kLanes, count, ds_t, kBlockQ, 1, queries.q, width,
                                       grads.dk + begin * width, width);
      const auto dq_gemm = begin == 0 ? gemm<Mode::kSet, Operand::kFar> : gemm<Mode::kAdd, Operand::kFar>;
      dq_gemm(head_dim, vectors, n, k, 1, row, ds_t, kBlockQ, dqt, kBlockQ, nullptr);
    }
  }
}

void store_key_grads(const StoreKeyGrads& store_grads, void*) {
  const int64_t width = padded(store_grads.head_dim), total = store_grads.end - store_grads.begin;
  const KeyGrads grads(const_cast<float*>(store_grads.key_grads), total, width);
  scatter_rows(grads.dk, width, total, times(1.0f), store_grads.dtype, store_grads.head_dim, store_grads.dk,
               store_grads.keys, store_grads.begin);
  scatter_rows(grads.dv, width, total, times(1.0f), store_grads.dtype, store_grads.head_dim, store_grads.dv,
               store_grads.keys, store_grads.begin);
}

void reduce_dq(const ReduceDq& r, void* scratch) {
  const int64_t width = padded(r.head_dim), count = r.end - r.begin, vectors = ceil_div(count, kLanes);
  auto* sum = static_cast<float*>(scratch);  // (width, kBlockQ), then transposed to (kBlockQ, width)
  float* rows = sum + dq_block_floats(r.head_dim);
  for (int64_t d = 0; d < r.head_dim; ++d)
    for (int64_t v = 0; v < vectors; ++v) {
      const int64_t at = d * kBlockQ + v * kLanes;
      Vec total{};
      for (int64_t c = 0; c < r.partials; ++c) total += load(r.partial + c * r.partial_stride + at);
      store(sum + at, total);
    }
  transpose(width, vectors * kLanes, sum, kBlockQ, rows, width);
  scatter_rows(rows, width, count, times(r.scale), r.dtype, r.head_dim, r.dq, r.queries, r.begin);
}

}  // namespace
}  // namespace maskattn

#include "table.h"
