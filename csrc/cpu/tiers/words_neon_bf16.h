// SPDX-License-Identifier: BSD-3-Clause
//
// Words of two bf16 for Arm's FEAT_BF16 (Neoverse V1 and N2, Apple M2 and later), whose BFDOT multiplies them.
#pragma once

#include <arm_neon.h>

#include <cstdint>
#include <cstring>

#include "../engine.h"
#include "../integers.h"
#include "vec.h"

namespace maskattn {
namespace {

using Word = uint32_t;
constexpr int kWordValues = 2;

inline Vec splat(Word word) { return vreinterpretq_f32_u32(vdupq_n_u32(word)); }

// acc + the products of the values of two words, in each lane.
inline Vec multiply_add(Vec acc, Vec a, Vec b) {
  return vbfdotq_f32(acc, vreinterpretq_bf16_f32(a), vreinterpretq_bf16_f32(b));
}

// One row along features: `words` words, of which the first `head_dim` values come from src, zeros after them.
inline void load_row_words(DType, const char* src, Word* dst, int head_dim, int64_t words) {
  auto* values = reinterpret_cast<char*>(dst);
  std::memcpy(values, src, head_dim * 2);
  std::memset(values + head_dim * 2, 0, words * 4 - head_dim * 2);
}

constexpr uint16_t kZeroRow[kMaxHeadDim] = {};

// Selected rows [begin, begin + count) along tokens; an odd last row is paired with zeros.
inline void gather_along_tokens(DType, const Slice& src, const TokenList& tokens, int64_t begin, int64_t count,
                                int head_dim, int64_t row, Word* dst) {
  for (int64_t i = 0; i < count; i += kWordValues, dst += row) {
    const auto* even = reinterpret_cast<const uint16_t*>(src.row(tokens[begin + i]));
    const auto* odd = i + 1 < count ? reinterpret_cast<const uint16_t*>(src.row(tokens[begin + i + 1])) : kZeroRow;
    for (int64_t d = 0; d < head_dim; ++d) dst[d] = even[d] | Word{odd[d]} << 16;
    for (int64_t d = head_dim; d < round_up(head_dim, kLanes); ++d) dst[d] = 0;
  }
}

// Lanes that are neighbours along the summed dimension -> kLanes / kWordValues words.
inline void store_lanes_as_words(Vec v, Word* dst) {
  const bfloat16x4_t values = vcvt_bf16_f32(v);
  std::memcpy(dst, &values, sizeof(values));
}

// Vectors that are neighbours along the summed dimension -> kLanes words.
inline void store_rows_as_words(const Vec (&rows)[kWordValues], Word* dst) {
  const uint16x8_t values = vreinterpretq_u16_bf16(vcvtq_high_bf16_f32(vcvtq_low_bf16_f32(rows[0]), rows[1]));
  store(dst, vreinterpretq_f32_u16(vzip1q_u16(values, vextq_u16(values, values, 4))));
}

}  // namespace
}  // namespace maskattn
