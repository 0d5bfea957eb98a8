// SPDX-License-Identifier: BSD-3-Clause
//
// Gathering selected rows into fp32 buffers and scattering them back, with the rows in between set to zero.
#pragma once

#include <cmath>
#include <cstring>

#include "../engine.h"
#include "convert.h"

namespace maskattn {
namespace {

// dst (padded_count, width) = factor * rows[begin : begin + count] of src, zeros around.
inline void gather_rows(DType dtype, const Slice& src, const TokenList& tokens, int64_t begin, int count,
                        int padded_count, int head_dim, int64_t width, float factor, float* dst) {
  for (int i = 0; i < count; ++i) {
    float* row = dst + i * width;
    load_row(dtype, src.row(tokens[begin + i]), row, head_dim, static_cast<int>(width));
    for (int64_t d = 0; d < width; ++d) row[d] *= factor;
  }
  std::memset(dst + count * width, 0, sizeof(float) * (padded_count - count) * width);
}

inline void zero_rows(const Slice& dst, int64_t begin, int64_t end, int64_t row_bytes) {
  for (int64_t n = begin; n < end; ++n) std::memset(dst.row(n), 0, row_bytes);
}

// Writes `count` rows to tokens[begin ...] of dst and zeros to the gaps before them; after the last selected
// token also to the rows that follow. `src` is used as scratch.
inline void scatter_rows(float* src, int64_t width, int64_t count, float factor, DType dtype, int head_dim,
                         const Slice& dst, const TokenList& tokens, int64_t begin) {
  const int64_t row_bytes = head_dim * element_size(dtype);
  for (int64_t i = 0; i < count; ++i) {
    const int64_t token = tokens[begin + i];
    zero_rows(dst, tokens.gap_begin(begin + i), token, row_bytes);
    float* row = src + i * width;
    if (factor != 1.0f)
      for (int d = 0; d < head_dim; ++d) row[d] *= factor;
    store_row(dtype, row, dst.row(token), head_dim);
  }
  if (begin + count == tokens.count) zero_rows(dst, tokens.gap_begin(tokens.count), tokens.seqlen, row_bytes);
}

inline float dot_rows(const float* a, const float* b, int64_t width) {
  Vec sum{};
  for (int64_t d = 0; d < width; d += kLanes) sum += load(a + d) * load(b + d);
  return sum_lanes(sum);
}

// log(sum of exp) of one query from its exponent reference (log2 units) and the sum of 2^(score - reference).
inline float natural_lse(float reference, float sum) {
  return sum == 0.0f ? -INFINITY : reference * kLn2 + std::log(sum);
}

}  // namespace
}  // namespace maskattn
