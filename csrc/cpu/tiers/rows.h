// SPDX-License-Identifier: BSD-3-Clause
//
// Gathering selected rows into fp32 buffers and scattering them back, with the rows in between set to zero.
#pragma once

#include <cmath>
#include <cstring>

#include "../engine.h"
#include "../integers.h"
#include "convert.h"

namespace maskattn {
namespace {

// dst (padded_count, width) = factor * rows[begin : begin + count] of src, zeros around.
inline void gather_rows(DType dtype, const Slice& src, const TokenList& tokens, int64_t begin, int count,
                        int padded_count, int head_dim, int64_t width, float factor, float* dst) {
  for (int i = 0; i < count; ++i)
    load_row(dtype, src.row(tokens[begin + i]), factor, dst + i * width, head_dim, static_cast<int>(width));
  std::memset(dst + count * width, 0, sizeof(float) * (padded_count - count) * width);
}

inline void zero_rows(const Slice& dst, int64_t begin, int64_t end, int64_t row_bytes) {
  for (int64_t n = begin; n < end; ++n) std::memset(dst.row(n), 0, row_bytes);
}

// Writes `count` rows of src, row i times factor(i), to tokens[begin ...] of dst and zeros to the gaps before
// them; after the last selected token also to the rows that follow.
template <class Factor>
inline void scatter_rows(const float* src, int64_t width, int64_t count, const Factor& factor, DType dtype,
                         int head_dim, const Slice& dst, const TokenList& tokens, int64_t begin) {
  const int64_t row_bytes = head_dim * element_size(dtype);
  for (int64_t i = 0; i < count; ++i) {
    const int64_t token = tokens[begin + i];
    zero_rows(dst, tokens.gap_begin(begin + i), token, row_bytes);
    store_row(dtype, src + i * width, factor(i), dst.row(token), head_dim);
  }
  if (begin + count == tokens.count) zero_rows(dst, tokens.gap_begin(tokens.count), tokens.seqlen, row_bytes);
}

// One factor for all rows.
inline auto times(float factor) {
  return [factor](int64_t) { return factor; };
}

inline float dot_rows(const float* a, const float* b, int64_t width) {
  Vec sum{};
  for (int64_t d = 0; d < width; d += kLanes) sum += load(a + d) * load(b + d);
  return sum_lanes(sum);
}

// lse, times `unit`, and delta of a block's queries. A query without weight, and the rows after the last query up
// to `padded`, have lse +inf, which makes P = 0.
inline void pack_lse_and_delta(const PackQueriesBlock& block, int64_t padded, float unit, float* lse,
                               float* delta) {
  const int width = static_cast<int>(round_up(block.head_dim, kLanes));
  float out[kMaxHeadDim], dout[kMaxHeadDim];
  for (int64_t i = 0; i < padded; ++i) {
    lse[i] = INFINITY;
    delta[i] = 0.0f;
    if (block.begin + i >= block.end) continue;
    const int64_t token = block.queries[block.begin + i];
    if (block.lse[token] != -INFINITY) lse[i] = block.lse[token] * unit;
    load_row(block.dtype, block.out.row(token), 1.0f, out, block.head_dim, width);
    load_row(block.dtype, block.dout.row(token), 1.0f, dout, block.head_dim, width);
    delta[i] = dot_rows(out, dout, width) - (block.dlse ? block.dlse[token * block.dlse_stride] : 0.0f);
  }
}

// The factor of a row of the output: 0 where no key had any weight. A NaN is not 0 and stays NaN.
inline float inverse_sum(float sum) { return sum == 0.0f ? 0.0f : 1.0f / sum; }

}  // namespace
}  // namespace maskattn
