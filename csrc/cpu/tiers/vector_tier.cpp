// SPDX-License-Identifier: BSD-3-Clause
//
// Masked attention by vectors, for one instruction set; compiled once per tier with MASKATTN_TIER naming it.
// Products multiply the words of words.h: floats, to which fp16 and bf16 rows are widened while they are gathered,
// or, in the tiers avx512_bf16 and neon_bf16, pairs of bf16. Sums and softmax are fp32.
//
// Scores lie transposed, S^T[key][query], with vectors along the queries: maximum, exponential and row sum
// need no horizontal step, and gathered K and V rows are used as they lie, word by word, as the broadcast
// operand of gemm.h.
//
// Forward, one block of kForwardQ queries (FlashAttention, Dao et al. 2022):
//     S^T = scale * K Q^T + bias;  m = running max;  P^T = exp(S^T - m);  O^T = O^T * exp(m_old - m) + V^T P^T
// Backward, one chunk of keys against every query block: the five products of FlashAttention, with dQ left as
// one partial sum per chunk, which reduce_dq adds up in chunk order. So nothing depends on the thread count.
#include "../engine.h"
#include "../integers.h"
#include "convert.h"
#include "few_queries.h"
#include "gemm.h"
#include "rows.h"
#include "words.h"

namespace maskattn {
namespace {

constexpr int kPanelQ = 3 * kLanes;                                            // queries
constexpr int kForwardQ = kPanelQ, kBackwardQ = 2 * kPanelQ, kStepQ = kLanes;  // queries of a block
constexpr int kBlockK = 96;                                                    // keys whose scores are in flight

// What scores are multiplied by. Floats: nothing, so that the weight of a lone key is exactly 1 in both passes.
// Pairs of bf16, whose weights are rounded to bf16: log2(e), which saves a multiplication a weight.
constexpr float kScoreUnit = kWordValues == 1 ? 1.0f : kLog2e;

Vec weight(Vec score, Vec reference) { return exp2((score - reference) * (kLog2e / kScoreUnit)); }

// Of a row of floats, and of a row of words along features.
int64_t padded(int head_dim) { return round_up(head_dim, kLanes); }
int64_t padded_words(int head_dim) { return round_up(words_of(head_dim), kLanes); }

// One vector more keeps rows that are read side by side out of the same cache set.
int64_t feature_row(int head_dim) { return padded_words(head_dim) + kLanes; }
int64_t token_row(int head_dim) { return padded(head_dim) + kLanes; }

// Packed keys: K along features, V along tokens, bias (count).
struct KeyRows {
  Word *k, *v;
  float* bias;
  KeyRows(void* data, int64_t count, int head_dim)
      : k(static_cast<Word*>(data)),
        v(k + count * feature_row(head_dim)),
        bias(reinterpret_cast<float*>(v + words_of(count) * token_row(head_dim))) {}
};

int64_t packed_keys_bytes(int head_dim, int64_t keys) {
  return 4 * (keys * feature_row(head_dim) + words_of(keys) * token_row(head_dim) + keys);
}

// The biases of keys [begin, end) of block.keys (a PackKeysBlock or KeyChunk).
template <class Block>
void gather_bias(const Block& block, float* dst) {
  for (int64_t i = block.begin; i < block.end; ++i)
    *dst++ = block.bias ? block.bias[block.keys[i] * block.bias_stride] * kScoreUnit : 0.0f;
}

void pack_keys(const PackKeysBlock& block) {
  const int head_dim = block.head_dim;
  const int64_t count = block.end - block.begin, k_row = feature_row(head_dim), v_row = token_row(head_dim);
  const KeyRows packed(block.packed.data, block.packed.count, head_dim);
  gather_along_features(block.dtype, block.k, block.keys, block.begin, count, head_dim, words_of(head_dim), k_row,
                        packed.k + block.begin * k_row);
  gather_along_tokens(block.dtype, block.v, block.keys, block.begin, count, head_dim, v_row,
                      packed.v + words_of(block.begin) * v_row);
  gather_bias(block, packed.bias + block.begin);
}

int64_t forward_scratch_bytes(int head_dim) { return 4 * kForwardQ * (3 * padded(head_dim) + kBlockK); }

// Running maximum, row sum and the rescaling of what was summed under an older maximum, for one vector of
// queries. The maximum in use moves only when a score exceeds it by e^kSlack, so that most blocks rescale
// nothing (FlashAttention-4's lazy rescaling); the result is exact either way.
struct OnlineSoftmax {
  static constexpr float kSlack = 5.5f * kScoreUnit;
  Vec max = splat(-INFINITY);
  Vec sum{};

  // The subtrahend of the exponent: never -inf, so that -inf - (-inf) does not make a NaN of "no weight".
  Vec reference() const { return select(max == -INFINITY, Vec{}, max); }

  // Returns whether `factor` has to be applied to the sums so far.
  bool update(Vec block_max, Vec* factor) {
    if (!any(block_max > max + kSlack)) return false;
    const Vec old = max;
    max = maximum(block_max, max);
    *factor = weight(old, reference());
    sum *= *factor;
    return true;
  }
};

// At most kPanelQ selected rows along features, transposed: (padded_words, kPanelQ). `rows` becomes the rows.
void pack_transposed(DType dtype, const Slice& src, const TokenList& tokens, int64_t begin, int64_t count,
                     int head_dim, Word* rows, Word* transposed) {
  const int64_t words = padded_words(head_dim), padded_count = round_up(count, kLanes);
  gather_along_features(dtype, src, tokens, begin, count, head_dim, words, words, rows);
  std::memset(rows + count * words, 0, sizeof(Word) * (padded_count - count) * words);
  transpose(padded_count, words, rows, words, transposed, kPanelQ);
}

// The last word along keys may hold more than n of them: the rest of its scores, or of dP.
void pad_keys(int64_t n, int64_t row, float value, float* scores) {
  for (int64_t j = n * row; j < words_of(n) * kWordValues * row; j += kLanes) store(scores + j, splat(value));
}

// The largest of n scores of each lane; four chains hide the latency.
Vec column_max(const float* scores, int64_t n) {
  Vec m[4];
  for (int c = 0; c < 4; ++c) m[c] = load(scores + min_of(c, n - 1) * kForwardQ);
  int64_t j = 4;
  for (; j + 4 <= n; j += 4)
    for (int c = 0; c < 4; ++c) m[c] = maximum(load(scores + (j + c) * kForwardQ), m[c]);
  for (; j < n; ++j) m[0] = maximum(load(scores + j * kForwardQ), m[0]);
  return maximum(maximum(m[0], m[1]), maximum(m[2], m[3]));
}

void forward_block(const ForwardBlock& block, void* scratch) {
  const int head_dim = block.head_dim;
  const int64_t width = padded(head_dim);
  const int64_t k_row = feature_row(head_dim), v_row = token_row(head_dim);
  const int count = static_cast<int>(block.end - block.begin);
  const int vectors = static_cast<int>(ceil_div(count, kLanes));
  auto* rows = static_cast<float*>(scratch);                     // (kForwardQ, width): Q, at the end O
  auto* qt = reinterpret_cast<Word*>(rows + kForwardQ * width);  // (words, kForwardQ)
  auto* ot = reinterpret_cast<float*>(qt + kForwardQ * width);   // (width, kForwardQ)
  float* st = ot + kForwardQ * width;                            // (kBlockK, kForwardQ): S^T
  auto* pt = reinterpret_cast<Word*>(st);                        // P^T along keys, in the place of S^T
  const KeyRows keys(block.keys.data, block.keys.count, head_dim);

  pack_transposed(block.dtype, block.q, block.queries, block.begin, count, head_dim, reinterpret_cast<Word*>(rows),
                  qt);
  std::memset(ot, 0, sizeof(float) * width * kForwardQ);

  OnlineSoftmax softmax[kForwardQ / kLanes];
  for (int64_t begin = 0; begin < block.keys.count; begin += kBlockK) {
    const int64_t n = min_of(block.keys.count - begin, kBlockK);
    gemm<Mode::kScores, Operand::kFar>(n, vectors, words_of(head_dim), keys.k + begin * k_row, k_row, 1, qt,
                                       kForwardQ, st, kForwardQ, {block.scale * kScoreUnit, keys.bias + begin});
    pad_keys(n, kForwardQ, -INFINITY, st);
    for (int v = 0; v < vectors; ++v) {
      float* s = st + v * kLanes;
      const Vec block_max = column_max(s, n);
      Vec factor;
      if (softmax[v].update(block_max, &factor))
        for (int d = 0; d < head_dim; ++d) {
          float* o = ot + d * kForwardQ + v * kLanes;
          store(o, load(o) * factor);
        }
      const Vec reference = softmax[v].reference();
      for (int64_t j = 0; j < n; j += kWordValues) {
        Vec p[kWordValues];
        for (int r = 0; r < kWordValues; ++r) {
          p[r] = weight(load(s + (j + r) * kForwardQ), reference);
          softmax[v].sum += p[r];
        }
        store_rows_as_words(p, pt + words_of(j) * kForwardQ + v * kLanes);
      }
    }
    gemm<Mode::kAdd, Operand::kFar>(head_dim, vectors, words_of(n), keys.v + words_of(begin) * v_row, 1, v_row, pt,
                                    kForwardQ, ot, kForwardQ);
  }

  float inverse[kForwardQ];
  for (int i = 0; i < count; ++i) {
    const OnlineSoftmax& s = softmax[i / kLanes];
    const float sum = s.sum[i % kLanes];
    inverse[i] = inverse_sum(sum);
    block.lse[block.queries[block.begin + i]] =
        sum == 0.0f ? -INFINITY : s.reference()[i % kLanes] / kScoreUnit + std::log(sum);
  }
  transpose(width, vectors * kLanes, ot, kForwardQ, rows, width);
  scatter_rows(
      rows, width, count, [&](int64_t i) { return inverse[i]; }, block.dtype, head_dim, block.out, block.queries,
      block.begin);
}

// ---- backward ----

// A packed query block.
struct QueryWords {
  Word *qt, *dout_t;   // along features, transposed: (padded_words, kBackwardQ)
  Word *q, *dout;      // along tokens: (words_of(kBackwardQ), width)
  float *lse, *delta;  // (kBackwardQ): +inf where a query has no weight, which makes P = 0
  QueryWords(void* data, int head_dim)
      : qt(static_cast<Word*>(data)),
        dout_t(qt + kBackwardQ * padded_words(head_dim)),
        q(dout_t + kBackwardQ * padded_words(head_dim)),
        dout(q + words_of(kBackwardQ) * padded(head_dim)),
        lse(reinterpret_cast<float*>(dout + words_of(kBackwardQ) * padded(head_dim))),
        delta(lse + kBackwardQ) {}
};

int64_t packed_queries_bytes(int head_dim) {
  return 4 * 2 * (kBackwardQ * padded_words(head_dim) + words_of(kBackwardQ) * padded(head_dim) + kBackwardQ);
}

void pack_queries(const PackQueriesBlock& block) {
  const int head_dim = block.head_dim;
  const int64_t width = padded(head_dim);
  const int count = static_cast<int>(block.end - block.begin);
  const QueryWords packed(block.packed, head_dim);
  const struct {
    const Slice& src;
    Word *transposed, *along_tokens;
  } operands[] = {{block.q, packed.qt, packed.q}, {block.dout, packed.dout_t, packed.dout}};
  const int64_t words = padded_words(head_dim);
  alignas(64) Word own_rows[kWordValues == 1 ? 1 : kPanelQ * kMaxHeadDim / kWordValues];
  for (const auto& operand : operands)
    for (int64_t i = 0; i < count; i += kPanelQ) {
      const int64_t begin = block.begin + i, n = min_of(count - i, kPanelQ);
      Word* along_tokens = operand.along_tokens + words_of(i) * width;
      Word* rows = kWordValues == 1 ? along_tokens : own_rows;  // floats have one form
      pack_transposed(block.dtype, operand.src, block.queries, begin, n, head_dim, rows,
                      operand.transposed + i * words);
      if (kWordValues > 1)
        gather_along_tokens(block.dtype, operand.src, block.queries, begin, n, head_dim, width, along_tokens);
    }
  pack_lse_and_delta(block, kBackwardQ, kScoreUnit, packed.lse, packed.delta);
}

// A chunk's own operands: K and V along features, K also along tokens.
struct ChunkKeys {
  Word *k, *v, *k_tokens;
  float* bias;
  ChunkKeys(void* data, int64_t count, int head_dim)
      : k(static_cast<Word*>(data)),
        v(k + count * feature_row(head_dim)),
        k_tokens(kWordValues == 1 ? k : v + count * feature_row(head_dim)),
        bias(reinterpret_cast<float*>(v + count * feature_row(head_dim) +
                                      (kWordValues == 1 ? 0 : words_of(count) * token_row(head_dim)))) {}
};

int64_t chunk_scratch_bytes(int head_dim, int64_t keys) {
  return 4 * (keys * (2 * feature_row(head_dim) + 1) + words_of(keys) * token_row(head_dim) +
              3 * kBlockK * kBackwardQ);
}

int64_t dq_block_floats(int head_dim) { return padded(head_dim) * kBackwardQ; }

// dK and dV of a chunk: (keys, width) each.
struct KeyGrads {
  float *dk, *dv;
  KeyGrads(float* data, int64_t keys, int64_t width) : dk(data), dv(data + keys * width) {}
};

int64_t key_grad_floats(int head_dim, int64_t keys) { return 2 * keys * padded(head_dim); }

void key_chunk(const KeyChunk& chunk, void* scratch) {
  const int head_dim = chunk.head_dim;
  const int64_t width = padded(head_dim), row = feature_row(head_dim), k_row = token_row(head_dim),
                total = chunk.end - chunk.begin, depth = words_of(head_dim), words = padded_words(head_dim);
  auto* st = static_cast<float*>(scratch);  // (kBlockK, kBackwardQ): S^T, then P^T along queries
  float* dpt = st + kBlockK * kBackwardQ;   // (kBlockK, kBackwardQ): dP^T, then dS^T along queries
  auto *pt = reinterpret_cast<Word*>(st), *dst = reinterpret_cast<Word*>(dpt);
  Word* dst_keys = dst + (kWordValues == 1 ? 0 : kBlockK * kBackwardQ);  // dS^T along keys
  const ChunkKeys keys(dst + 2 * kBlockK * kBackwardQ, total, head_dim);
  gather_along_features(chunk.dtype, chunk.k, chunk.keys, chunk.begin, total, head_dim, depth, row, keys.k);
  gather_along_features(chunk.dtype, chunk.v, chunk.keys, chunk.begin, total, head_dim, depth, row, keys.v);
  if (kWordValues > 1)
    gather_along_tokens(chunk.dtype, chunk.k, chunk.keys, chunk.begin, total, head_dim, k_row, keys.k_tokens);
  gather_bias(chunk, keys.bias);

  const KeyGrads grads(chunk.key_grads, total, width);
  for (int64_t b = 0; b < chunk.block_count; ++b) {
    const QueryWords queries(const_cast<char*>(chunk.packed_queries) + b * chunk.packed_stride, head_dim);
    const int64_t count = chunk.blocks[b].end - chunk.blocks[b].begin, vectors = ceil_div(count, kLanes);
    float* dqt = chunk.dq_partial + b * dq_block_floats(head_dim);
    if (total == 0) std::memset(dqt, 0, sizeof(float) * dq_block_floats(head_dim));
    for (int64_t begin = 0; begin < total; begin += kBlockK) {
      const int64_t n = min_of(total - begin, kBlockK);
      for (int64_t i = 0; i < count; i += kPanelQ) {
        const int64_t panel = min_of(vectors - i / kLanes, kPanelQ / kLanes);
        gemm<Mode::kScores, Operand::kFar>(n, panel, depth, keys.k + begin * row, row, 1, queries.qt + i * words,
                                           kPanelQ, st + i, kBackwardQ,
                                           {chunk.scale * kScoreUnit, keys.bias + begin});
        gemm<Mode::kSet, Operand::kFar>(n, panel, depth, keys.v + begin * row, row, 1, queries.dout_t + i * words,
                                        kPanelQ, dpt + i, kBackwardQ);
      }
      pad_keys(n, kBackwardQ, -INFINITY, st);
      pad_keys(n, kBackwardQ, 0.0f, dpt);
      for (int64_t j = 0; j < n; j += kWordValues) {
        Vec dbias[kWordValues] = {};
        for (int64_t i = 0; i < vectors; ++i) {
          Vec ds[kWordValues];
          for (int r = 0; r < kWordValues; ++r) {
            const int64_t from = (j + r) * kBackwardQ + i * kLanes,
                          to = (j + r) * kBackwardQ + i * words_of(kLanes);
            const Vec p = weight(load(st + from), load(queries.lse + i * kLanes));
            ds[r] = p * (load(dpt + from) - load(queries.delta + i * kLanes));
            store_lanes_as_words(p, pt + to);
            store_lanes_as_words(ds[r], dst + to);
            dbias[r] += ds[r];
          }
          if (kWordValues > 1) store_rows_as_words(ds, dst_keys + words_of(j) * kBackwardQ + i * kLanes);
        }
        if (chunk.dbias)
          for (int r = 0; r < kWordValues; ++r) chunk.dbias[begin + j + r] += sum_lanes(dbias[r]);
      }
      gemm<Mode::kAdd, Operand::kNear>(n, width / kLanes, words_of(count), pt, kBackwardQ, 1, queries.dout, width,
                                       grads.dv + begin * width, width);
      gemm<Mode::kAdd, Operand::kNear>(n, width / kLanes, words_of(count), dst, kBackwardQ, 1, queries.q, width,
                                       grads.dk + begin * width, width);
      const auto dq_gemm = begin == 0 ? gemm<Mode::kSet, Operand::kFar> : gemm<Mode::kAdd, Operand::kFar>;
      dq_gemm(head_dim, vectors, words_of(n), keys.k_tokens + words_of(begin) * k_row, 1, k_row, dst_keys,
              kBackwardQ, dqt, kBackwardQ, {});
    }
  }
}

void store_key_grads(const StoreKeyGrads& store_grads, void*) {
  const int64_t width = padded(store_grads.head_dim), total = store_grads.end - store_grads.begin;
  const KeyGrads grads(const_cast<float*>(store_grads.key_grads), total, width);
  scatter_rows(grads.dk, width, total, times(store_grads.scale), store_grads.dtype, store_grads.head_dim,
               store_grads.dk, store_grads.keys, store_grads.begin);
  scatter_rows(grads.dv, width, total, times(1.0f), store_grads.dtype, store_grads.head_dim, store_grads.dv,
               store_grads.keys, store_grads.begin);
}

void reduce_dq(const ReduceDq& r, void* scratch) {
  const int64_t width = padded(r.head_dim), count = r.end - r.begin, vectors = ceil_div(count, kLanes);
  auto* sum = static_cast<float*>(scratch);  // (width, kBackwardQ), then transposed to (kBackwardQ, width)
  float* rows = sum + dq_block_floats(r.head_dim);
  for (int64_t d = 0; d < r.head_dim; ++d)
    for (int64_t v = 0; v < vectors; ++v) {
      const int64_t at = d * kBackwardQ + v * kLanes;
      Vec total{};
      for (int64_t c = 0; c < r.partials; ++c) total += load(r.partial + c * r.partial_stride + at);
      store(sum + at, total);
    }
  transpose(width, vectors * kLanes, sum, kBackwardQ, rows, width);
  scatter_rows(rows, width, count, times(r.scale), r.dtype, r.head_dim, r.dq, r.queries, r.begin);
}

}  // namespace
}  // namespace maskattn

#include "table.h"
