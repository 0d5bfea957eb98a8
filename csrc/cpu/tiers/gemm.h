// SPDX-License-Identifier: BSD-3-Clause
//
// The one matrix product behind every step of the vector kernels:
//
//     C[i][n] (+)= sum_k A(i, k) * B[k][n]        A(i, k) = a[i * a_row + k * a_col]
//
// A and B hold words (words.h), C floats. B and C hold vectors along n; A is read one broadcast word at a time, so
// it may be transposed for free by its strides. A tile of MR rows x NV vectors of C stays in registers over the
// whole k loop, which is the shape of BLIS' micro-kernel (Van Zee and van de Geijn, 2015): MR * NV accumulators
// hide the FMA latency, and NV loads plus MR broadcasts feed MR * NV FMAs. Where A is a panel larger than the
// first cache, a tile prefetches the cache lines of A that the next tile reads: the hardware does not predict
// them.
#pragma once

#include <cstdint>
#include <utility>

#include "vec.h"
#include "words.h"

namespace maskattn {
namespace {

// C = A B, C += A B, or C = scale * A B + bias[i]. The bias comes last: a large one would round every partial sum.
enum class Mode { kSet, kAdd, kScores };

// What turns a product into scores, in Mode::kScores.
struct ScoreTerms {
  float scale;
  const float* bias;  // one a row
};

// Where A is: in the first cache, or in a panel larger than that.
enum class Operand { kNear, kFar };

// Rows of a register tile NV vectors wide: the most that leaves room for B's vectors and one broadcast among
// the 32 (AVX-512, NEON) or 16 vector registers.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int tile_rows(int nv) { return nv == 3 ? 8 : 12; }
#else
constexpr int tile_rows(int nv) { return nv == 3 ? 4 : 6; }
#endif

constexpr int64_t kLineWords = 16;  // of a cache line

// `at` is A(0, k) of a tile of MR rows: prefetches column k of the tile after it. An address past the end of A is
// harmless.
template <int MR>
inline void prefetch_next_tile(const Word* at, int64_t a_row, int64_t a_col, int64_t k) {
  if (a_row == 1) {
    __builtin_prefetch(at + kLineWords);
  } else if (a_col == 1 && k % kLineWords == 0) {
#pragma GCC unroll 16
    for (int i = 0; i < MR; ++i) __builtin_prefetch(at + (MR + i) * a_row);
  }
}

template <Mode mode, Operand operand, int MR, int NV>
inline void gemm_tile(int64_t depth, const Word* a, int64_t a_row, int64_t a_col, const Word* b, int64_t b_row,
                      float* c, int64_t c_row, ScoreTerms terms) {
  Vec acc[MR][NV];
#pragma GCC unroll 16
  for (int i = 0; i < MR; ++i)
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v)
      if constexpr (mode != Mode::kAdd) {
        acc[i][v] = Vec{};
      } else {
        acc[i][v] = load(c + i * c_row + v * kLanes);
      }
  for (int64_t k = 0; k < depth; ++k) {
    Vec bv[NV];
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) bv[v] = load(b + k * b_row + v * kLanes);
    const Word* ak = a + k * a_col;
    if constexpr (operand == Operand::kFar) prefetch_next_tile<MR>(ak, a_row, a_col, k);
#pragma GCC unroll 16
    for (int i = 0; i < MR; ++i) {
      const Vec av = splat(ak[i * a_row]);
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) acc[i][v] = multiply_add(acc[i][v], av, bv[v]);
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < MR; ++i)
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) {
      if constexpr (mode == Mode::kScores) acc[i][v] = acc[i][v] * terms.scale + terms.bias[i];
      store(c + i * c_row + v * kLanes, acc[i][v]);
    }
}

// The rows that do not fill a tile, by the one template instance of just that height.
template <Mode mode, Operand operand, int MR, int NV>
inline void gemm_tail(int64_t rows, int64_t depth, const Word* a, int64_t a_row, int64_t a_col, const Word* b,
                      int64_t b_row, float* c, int64_t c_row, ScoreTerms terms) {
  if constexpr (MR > 0) {
    if (rows == MR) {
      gemm_tile<mode, operand, MR, NV>(depth, a, a_row, a_col, b, b_row, c, c_row, terms);
    } else {
      gemm_tail<mode, operand, MR - 1, NV>(rows, depth, a, a_row, a_col, b, b_row, c, c_row, terms);
    }
  }
}

// The terms of row i and those after it.
inline ScoreTerms from_row(ScoreTerms terms, int64_t i) {
  return {terms.scale, terms.bias ? terms.bias + i : nullptr};
}

template <Mode mode, Operand operand, int NV>
inline void gemm_panel(int64_t rows, int64_t depth, const Word* a, int64_t a_row, int64_t a_col, const Word* b,
                       int64_t b_row, float* c, int64_t c_row, ScoreTerms terms) {
  constexpr int kRows = tile_rows(NV);
  int64_t i = 0;
  for (; i + kRows <= rows; i += kRows)
    gemm_tile<mode, operand, kRows, NV>(depth, a + i * a_row, a_row, a_col, b, b_row, c + i * c_row, c_row,
                                        from_row(terms, i));
  gemm_tail<mode, operand, kRows - 1, NV>(rows - i, depth, a + i * a_row, a_row, a_col, b, b_row, c + i * c_row,
                                          c_row, from_row(terms, i));
}

// C is rows x (vectors * kLanes).
template <Mode mode, Operand operand>
inline void gemm(int64_t rows, int64_t vectors, int64_t depth, const Word* a, int64_t a_row, int64_t a_col,
                 const Word* b, int64_t b_row, float* c, int64_t c_row, ScoreTerms terms = {}) {
  while (vectors > 0) {
    // 4 splits as 2 + 2 and not 3 + 1: a one-vector tile is bound by its broadcasts.
    const int64_t width = vectors == 3 || vectors > 4 ? 3 : vectors >= 2 ? 2 : 1;
    if (width == 3) {
      gemm_panel<mode, operand, 3>(rows, depth, a, a_row, a_col, b, b_row, c, c_row, terms);
    } else if (width == 2) {
      gemm_panel<mode, operand, 2>(rows, depth, a, a_row, a_col, b, b_row, c, c_row, terms);
    } else {
      gemm_panel<mode, operand, 1>(rows, depth, a, a_row, a_col, b, b_row, c, c_row, terms);
    }
    vectors -= width;
    b += width * kLanes;
    c += width * kLanes;
  }
}

// Interleaves the low (kHigh = 0) or high halves of two vectors.
template <int kHigh, size_t... I>
inline Vec zip(Vec a, Vec b, std::index_sequence<I...>) {
  return __builtin_shufflevector(a, b, (I / 2 + (I % 2) * kLanes + kHigh * kLanes / 2)...);
}

// dst[j][i] = src[i][j] for one kLanes x kLanes tile: log2(kLanes) rounds of a perfect shuffle of the rows.
template <class T>
inline void transpose_tile(const T* src, int64_t src_row, T* dst, int64_t dst_row) {
  constexpr auto lanes = std::make_index_sequence<kLanes>();
  Vec rows[kLanes], next[kLanes];
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) rows[i] = load(src + i * src_row);
#pragma GCC unroll 4
  for (int round = 1; round < kLanes; round *= 2) {
#pragma GCC unroll 16
    for (int i = 0; i < kLanes / 2; ++i) {
      next[2 * i] = zip<0>(rows[i], rows[i + kLanes / 2], lanes);
      next[2 * i + 1] = zip<1>(rows[i], rows[i + kLanes / 2], lanes);
    }
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) rows[i] = next[i];
  }
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) store(dst + i * dst_row, rows[i]);
}

// rows and cols are multiples of kLanes.
template <class T>
inline void transpose(int64_t rows, int64_t cols, const T* src, int64_t src_row, T* dst, int64_t dst_row) {
  for (int64_t i = 0; i < rows; i += kLanes)
    for (int64_t j = 0; j < cols; j += kLanes)
      transpose_tile(src + i * src_row + j, src_row, dst + j * dst_row + i, dst_row);
}

}  // namespace
}  // namespace maskattn
