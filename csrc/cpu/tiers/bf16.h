// SPDX-License-Identifier: BSD-3-Clause
//
// Vectors of bf16 for the instruction sets that multiply them (vdpbf16ps, AMX). Both sum over pairs of
// neighbouring values, so an operand is either a row as it lies in memory or two rows interleaved.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <utility>

namespace maskattn {
namespace {

// The first `count` of 32 (16) values at `src`, zeros after them. Nothing past them is read.
inline __m512i load_bf16(const void* src, int64_t count) {
  const __mmask32 valid = count >= 32 ? ~__mmask32{0} : count <= 0 ? 0 : (__mmask32{1} << count) - 1;
  return _mm512_maskz_loadu_epi16(valid, src);
}
inline __m256i load_half_bf16(const void* src, int64_t count) {
  const __mmask16 valid = static_cast<__mmask16>(count >= 16 ? 0xffff : count <= 0 ? 0 : (1u << count) - 1);
  return _mm256_maskz_loadu_epi16(valid, src);
}

// (even[i], odd[i]) pairs of 16 bf16 each.
inline __m512i interleave(__m256i even, __m256i odd) {
  return _mm512_or_si512(_mm512_cvtepu16_epi32(even), _mm512_slli_epi32(_mm512_cvtepu16_epi32(odd), 16));
}

// 32 fp32 to 32 bf16, in order, rounded to nearest even.
inline __m512i to_bf16(__m512 low, __m512 high) {
  return reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high, low));
}

typedef int16_t Bf16Vec __attribute__((vector_size(64)));

template <size_t... I>
inline Bf16Vec interleave_halves(Bf16Vec v, std::index_sequence<I...>) {
  return __builtin_shufflevector(v, v, (I / 2 + I % 2 * 16)...);
}

// The lower 16 of 32 bf16 interleaved with the upper 16.
inline __m512i interleave_halves(__m512i v) {
  return reinterpret_cast<__m512i>(
      interleave_halves(reinterpret_cast<Bf16Vec>(v), std::make_index_sequence<32>()));
}

}  // namespace
}  // namespace maskattn
