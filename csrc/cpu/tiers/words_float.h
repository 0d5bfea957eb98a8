// SPDX-License-Identifier: BSD-3-Clause
//
// Words of one float, to which rows of fp16 and bf16 are widened.
#pragma once

#include "../engine.h"
#include "../integers.h"
#include "convert.h"
#include "vec.h"

namespace maskattn {
namespace {

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

}  // namespace
}  // namespace maskattn
