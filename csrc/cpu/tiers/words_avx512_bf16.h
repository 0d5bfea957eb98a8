// SPDX-License-Identifier: BSD-3-Clause
//
// Words of two bf16 for AVX512-BF16, whose vdpbf16ps multiplies them.
#pragma once

#include "../engine.h"
#include "../integers.h"
#include "bf16.h"
#include "vec.h"

namespace maskattn {
namespace {

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

}  // namespace
}  // namespace maskattn
