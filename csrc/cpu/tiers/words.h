// SPDX-License-Identifier: BSD-3-Clause
//
// What the products of gemm.h multiply: 32-bit words. A word is one float, or, on an instruction set that
// multiplies pairs of bf16 (vdpbf16ps), two bf16 that are neighbours along the dimension that a product sums over.
// So an operand has one of two forms:
//   along features   (tokens, words of a row): a row as it lies in memory; for sums over head_dim
//   along tokens     (words of tokens, head_dim): for sums over tokens. With pairs, two rows interleaved.
// With floats both are the same.
#pragma once

#include <cstdint>
#include <cstring>

#include "../engine.h"
#include "../integers.h"
#include "convert.h"
#include "vec.h"

#ifdef __AVX512BF16__
#include "bf16.h"
#endif

namespace maskattn {
namespace {

#ifdef __AVX512BF16__

using Word = uint32_t;
constexpr int kWordValues = 2;

inline Vec splat(Word word) { return reinterpret_cast<Vec>(_mm512_set1_epi32(static_cast<int32_t>(word))); }

// acc + the products of the values of two words, in each lane.
inline Vec multiply_add(Vec acc, Vec a, Vec b) {
  return _mm512_dpbf16_ps(acc, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
}

// One row along features: `words` words, of which the first `head_dim` values come from src, zeros after them.
inline void load_row_words(DType, const char* src, Word* dst, int head_dim, int64_t words) {
  for (int64_t w = 0; w < words; w += kLanes)
    _mm512_storeu_si512(dst + w, load_bf16(src + w * 4, head_dim - w * kWordValues));
}

// Selected rows [begin, begin + count) along tokens; an odd last row is paired with zeros.
inline void gather_along_tokens(DType, const Slice& src, const TokenList& tokens, int64_t begin, int64_t count,
                                int head_dim, int64_t row, Word* dst) {
  for (int64_t i = 0; i < count; i += kWordValues, dst += row) {
    const char* even = src.row(tokens[begin + i]);
    const char* odd = i + 1 < count ? src.row(tokens[begin + i + 1]) : even;
    const int odd_values = i + 1 < count ? head_dim : 0;
    for (int64_t d = 0; d < head_dim; d += kLanes)
      _mm512_storeu_si512(dst + d, interleave(load_half_bf16(even + d * 2, head_dim - d),
                                              load_half_bf16(odd + d * 2, odd_values - d)));
  }
}

// Lanes that are neighbours along the summed dimension -> kLanes / kWordValues words.
inline void store_lanes_as_words(Vec v, Word* dst) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(dst), reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(v)));
}

// Vectors that are neighbours along the summed dimension -> kLanes words.
inline void store_rows_as_words(const Vec (&rows)[kWordValues], Word* dst) {
  _mm512_storeu_si512(dst, interleave_halves(to_bf16(rows[0], rows[1])));
}

#else

using Word = float;
constexpr int kWordValues = 1;

inline Vec multiply_add(Vec acc, Vec a, Vec b) { return acc + a * b; }

inline void load_row_words(DType dtype, const char* src, Word* dst, int head_dim, int64_t words) {
  load_row(dtype, src, 1.0f, dst, head_dim, static_cast<int>(words));
}

inline void gather_along_tokens(DType dtype, const Slice& src, const TokenList& tokens, int64_t begin,
                                int64_t count, int head_dim, int64_t row, Word* dst) {
  for (int64_t i = 0; i < count; ++i, dst += row)
    load_row(dtype, src.row(tokens[begin + i]), 1.0f, dst, head_dim, static_cast<int>(round_up(head_dim, kLanes)));
}

inline void store_lanes_as_words(Vec v, Word* dst) { store(dst, v); }
inline void store_rows_as_words(const Vec (&rows)[kWordValues], Word* dst) { store(dst, rows[0]); }

#endif

// Words that hold `values` of the summed dimension.
constexpr int64_t words_of(int64_t values) { return ceil_div(values, kWordValues); }

// Selected rows [begin, begin + count) along features, `row` words apart, the first `words` of each filled.
inline void gather_along_features(DType dtype, const Slice& src, const TokenList& tokens, int64_t begin,
                                  int64_t count, int head_dim, int64_t words, int64_t row, Word* dst) {
  for (int64_t i = 0; i < count; ++i)
    load_row_words(dtype, src.row(tokens[begin + i]), dst + i * row, head_dim, words);
}

}  // namespace
}  // namespace maskattn
