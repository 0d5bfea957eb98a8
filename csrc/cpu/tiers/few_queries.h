// SPDX-License-Identifier: BSD-3-Clause
//
// Forward pass of few queries over many keys (decoding, attention to a long memory). One query reads every key
// once, so nothing is packed: K and V are read where they lie, a chunk of keys at a time, and the time is that of
// the memory. A row of another dtype, or one that does not fill its last vector, goes through a copy in the first
// cache.
//
// A chunk has three steps: scores of all its keys by dot products, kLanes keys at a time; their maximum, weights
// and sum; and the weighted sum of V's rows. Chunks are combined in order, whichever thread computed them.
#pragma once

#include "../engine.h"
#include "../integers.h"
#include "convert.h"
#include "gemm.h"
#include "rows.h"
#include "words.h"

namespace maskattn {
namespace {

inline int64_t few_width(int head_dim) { return round_up(head_dim, kLanes); }

// A partial result: the sum of weighted values, then the maximum of the scores and the sum of the weights.
inline int64_t few_row_floats(int head_dim) { return few_width(head_dim) + kLanes; }

struct FewScratch {
  const char *k[kFewKeys], *v[kFewKeys];      // rows of the chunk; the last one again up to a whole vector of keys
  float bias[kFewKeys];                       // -inf for these
  float weights[kMostFewQueries * kFewKeys];  // scores, then weights
  float copies[kLanes * kMaxHeadDim];         // rows that products cannot read in place
  float sums[kMostFewQueries * kMaxHeadDim];  // of all chunks
  Word queries[kMostFewQueries * kMaxHeadDim];
};

inline int64_t few_scratch_bytes() { return sizeof(FewScratch); }

// Whether products can read rows of this dtype in place as whole vectors: of words, or of floats or bf16.
inline bool reads_words(DType dtype, int head_dim) {
  return dtype == (kWordValues == 1 ? DType::kFloat32 : DType::kBFloat16) &&
         head_dim % (kLanes * kWordValues) == 0;
}
inline bool reads_values(DType dtype, int head_dim) { return dtype != DType::kFloat16 && head_dim % kLanes == 0; }

inline Vec load_values(const float* p) { return load(p); }
inline Vec load_values(const uint16_t* bf16) {
  typedef uint16_t Halves __attribute__((vector_size(kLanes * 2), aligned(2), may_alias));
  const UVec wide = __builtin_convertvector(*reinterpret_cast<const Halves*>(bf16), UVec);
  return reinterpret_cast<Vec>(wide << 16);
}

// Prefetches rows [begin, begin + kLanes) of `count`. Not float32 rows that follow each other: there the hardware
// is faster alone (measured on Zen 5; rows of 16-bit values that follow each other it fetches too late). GCC takes
// a function that only prefetches for one without effect, and drops calls of it that are not inlined.
__attribute__((always_inline)) inline void prefetch_rows(const FewQueries& few, const char* const* rows,
                                                         int64_t begin, int64_t count) {
  if (few.keys.indices == nullptr && few.dtype == DType::kFloat32) return;
  const int64_t row_bytes = few.head_dim * element_size(few.dtype), end = min_of(begin + kLanes, count);
  for (int64_t i = begin; i < end; ++i)
    for (int64_t byte = 0; byte < row_bytes; byte += 64) __builtin_prefetch(rows[i] + byte);
}

// Lane j is the sum of rows[j].
inline Vec sum_each(Vec (&rows)[kLanes]) {
  constexpr auto lanes = std::make_index_sequence<kLanes>();
#pragma GCC unroll 4
  for (int half = kLanes / 2; half > 0; half /= 2)
#pragma GCC unroll 8
    for (int i = 0; i < half; ++i)
      rows[i] = zip<0>(rows[i], rows[i + half], lanes) + zip<1>(rows[i], rows[i + half], lanes);
  return rows[0];
}

// Dot products of a query with kLanes keys.
inline Vec dot_each(const char* const* keys, const Word* query, int64_t words) {
  Vec sums[kLanes];
#pragma GCC unroll 16
  for (int j = 0; j < kLanes; ++j) {
    const auto* key = reinterpret_cast<const Word*>(keys[j]);
    sums[j] = Vec{};
    for (int64_t w = 0; w < words; w += kLanes) sums[j] = multiply_add(sums[j], load(key + w), load(query + w));
  }
  return sum_each(sums);
}

inline void score_keys(const FewQueries& few, FewScratch& s) {
  const int64_t words = round_up(words_of(few.head_dim), kLanes), padded = round_up(few.end - few.begin, kLanes);
  const bool in_place = reads_words(few.dtype, few.head_dim);
  const char* copied[kLanes];
  for (int64_t j = 0; j < padded; j += kLanes) {
    prefetch_rows(few, s.k, j + kLanes, padded);
    const char* const* keys = in_place ? s.k + j : copied;
    for (int i = 0; i < kLanes && !in_place; ++i) {
      auto* copy = reinterpret_cast<Word*>(s.copies) + i * words;
      load_row_words(few.dtype, s.k[j + i], copy, few.head_dim, words);
      copied[i] = reinterpret_cast<const char*>(copy);
    }
    for (int64_t q = 0; q < few.query_count; ++q)
      store(s.weights + q * kFewKeys + j,
            dot_each(keys, s.queries + q * words, words) * few.scale + load(s.bias + j));
  }
}

// Scores -> weights in place; returns their sum.
inline float weigh_scores(float* scores, int64_t count, float* max) {
  Vec most = splat(-INFINITY), sum{};
  for (int64_t j = 0; j < count; j += kLanes) most = maximum(load(scores + j), most);
  *max = -INFINITY;
  for (int j = 0; j < kLanes; ++j) *max = most[j] > *max ? most[j] : *max;
  const float reference = *max == -INFINITY ? 0.0f : *max;
  for (int64_t j = 0; j < count; j += kLanes) {
    const Vec weight = exp2((load(scores + j) - reference) * kLog2e);
    store(scores + j, weight);
    sum += weight;
  }
  return sum_lanes(sum);
}

// out[q][d] += sum over keys of weights[q][key] * rows[key][d], for MQ queries and NV vectors of d.
template <int MQ, int NV, class Value>
inline void add_rows(const char* const* rows, int64_t d, int64_t count, const float* weights, float* out,
                     int64_t out_row) {
  Vec acc[MQ][NV];
#pragma GCC unroll 4
  for (int q = 0; q < MQ; ++q)
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) acc[q][v] = load(out + q * out_row + d + v * kLanes);
#pragma GCC unroll 2
  for (int64_t j = 0; j < count; ++j) {
    const auto* values = reinterpret_cast<const Value*>(rows[j]) + d;
    Vec row[NV];
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) row[v] = load_values(values + v * kLanes);
#pragma GCC unroll 4
    for (int q = 0; q < MQ; ++q) {
      const Vec weight = splat(weights[q * kFewKeys + j]);
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) acc[q][v] += weight * row[v];
    }
  }
#pragma GCC unroll 4
  for (int q = 0; q < MQ; ++q)
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) store(out + q * out_row + d + v * kLanes, acc[q][v]);
}

template <int MQ, class Value>
inline void add_whole_rows(const char* const* rows, int64_t width, int64_t count, const float* weights, float* out,
                           int64_t out_row) {
  constexpr int kVectors = kLanes == 16 ? 4 : 2;  // as the registers allow
  int64_t d = 0;
  for (; d + kVectors * kLanes <= width; d += kVectors * kLanes)
    add_rows<MQ, kVectors, Value>(rows, d, count, weights, out, out_row);
  for (; d < width; d += kLanes) add_rows<MQ, 1, Value>(rows, d, count, weights, out, out_row);
}

// Value is float or bf16, whichever few.v holds, or float for rows that have to be copied.
template <class Value>
inline void add_values(const FewQueries& few, FewScratch& s) {
  const int64_t width = few_width(few.head_dim), out_row = few_row_floats(few.head_dim),
                total = few.end - few.begin;
  const bool in_place = reads_values(few.dtype, few.head_dim);
  const char* copied[kLanes];
  for (int64_t j = 0; j < total; j += kLanes) {
    prefetch_rows(few, s.v, j + kLanes, total);
    const int64_t count = min_of(total - j, kLanes);
    const char* const* rows = in_place ? s.v + j : copied;
    for (int64_t i = 0; i < count && !in_place; ++i) {
      load_row(few.dtype, s.v[j + i], 1.0f, s.copies + i * width, few.head_dim, static_cast<int>(width));
      copied[i] = reinterpret_cast<const char*>(s.copies + i * width);
    }
    int64_t q = 0;
    for (; q + 4 <= few.query_count; q += 4)
      add_whole_rows<4, Value>(rows, width, count, s.weights + q * kFewKeys + j, few.partial + q * out_row,
                               out_row);
    for (; q < few.query_count; ++q)
      add_whole_rows<1, Value>(rows, width, count, s.weights + q * kFewKeys + j, few.partial + q * out_row,
                               out_row);
  }
}

void attend_few(const FewQueries& few, void* scratch) {
  auto& s = *static_cast<FewScratch*>(scratch);
  const int64_t width = few_width(few.head_dim), words = round_up(words_of(few.head_dim), kLanes);
  const int64_t total = few.end - few.begin, padded = round_up(total, kLanes);
  for (int64_t j = 0; j < padded; ++j) {
    const int64_t token = few.keys[few.begin + min_of(j, total - 1)];
    s.k[j] = few.k.row(token);
    s.v[j] = few.v.row(token);
    s.bias[j] = j >= total ? -INFINITY : few.bias ? few.bias[token * few.bias_stride] : 0.0f;
  }
  for (int64_t q = 0; q < few.query_count; ++q)
    load_row_words(few.dtype, few.query_rows[q], s.queries + q * words, few.head_dim, words);
  score_keys(few, s);
  for (int64_t q = 0; q < few.query_count; ++q) {
    float* out = few.partial + q * few_row_floats(few.head_dim);
    std::memset(out, 0, sizeof(float) * width);
    out[width + 1] = weigh_scores(s.weights + q * kFewKeys, padded, &out[width]);
  }
  if (few.dtype == DType::kBFloat16 && reads_values(few.dtype, few.head_dim)) {
    add_values<uint16_t>(few, s);
  } else {
    add_values<float>(few, s);
  }
}

void combine_few(const CombineChunks& c, void* scratch) {
  const int64_t width = few_width(c.head_dim), row = few_row_floats(c.head_dim);
  float* sums = static_cast<FewScratch*>(scratch)->sums;  // (queries, width)
  float inverse[kMostFewQueries];
  for (int64_t q = 0; q < c.queries.count; ++q) {
    const float* partial = c.partial + q * row;
    float* out = sums + q * width;
    float max = -INFINITY, sum = 0.0f;
    for (int64_t i = 0; i < c.chunks; ++i) {
      const float m = partial[i * c.chunk_stride + width];
      max = m > max ? m : max;
    }
    const float reference = max == -INFINITY ? 0.0f : max;
    std::memset(out, 0, sizeof(float) * width);
    for (int64_t i = 0; i < c.chunks; ++i) {
      const float* chunk = partial + i * c.chunk_stride;
      const Vec factor = exp2(splat((chunk[width] - reference) * kLog2e));
      sum += factor[0] * chunk[width + 1];
      for (int64_t d = 0; d < width; d += kLanes) store(out + d, load(out + d) + factor * load(chunk + d));
    }
    inverse[q] = inverse_sum(sum);
    c.lse[c.queries[q]] = sum == 0.0f ? -INFINITY : reference + std::log(sum);
  }
  scatter_rows(
      sums, width, c.queries.count, [&](int64_t q) { return inverse[q]; }, c.dtype, c.head_dim, c.out, c.queries,
      0);
}

}  // namespace
}  // namespace maskattn
