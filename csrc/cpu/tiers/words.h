// SPDX-License-Identifier: BSD-3-Clause
//
// What the products of gemm.h multiply: 32-bit words. A word is one float, or, on an instruction set that
// multiplies pairs of bf16 (vdpbf16ps, BFDOT), two bf16 that are neighbours along the dimension that a product
// sums over. So an operand has one of two forms:
//   along features   (tokens, words of a row): a row as it lies in memory; for sums over head_dim
//   along tokens     (words of tokens, head_dim): for sums over tokens. With pairs, two rows interleaved.
// With floats both are the same.
#pragma once

#include <cstdint>

#include "../engine.h"
#include "../integers.h"
#include "vec.h"

// Each defines Word, kWordValues, splat(Word), multiply_add, load_row_words, gather_along_tokens,
// store_lanes_as_words and store_rows_as_words.
#if defined(__AVX512BF16__)
#include "words_avx512_bf16.h"
#elif defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
#include "words_neon_bf16.h"
#else
#include "words_float.h"
#endif

namespace maskattn {
namespace {

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
