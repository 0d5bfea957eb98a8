// SPDX-License-Identifier: BSD-3-Clause
//
// Rows of fp32, fp16 or bf16 to and from rows of fp32, scaled on the way. Loads fill up to a padded length with
// zeros; stores round to nearest, ties to even, as torch does.
#pragma once

#include <cstdint>
#include <cstring>

#include "../../params.h"
#include "vec.h"

#if defined(__AVX512F__) || defined(__F16C__)
#include <immintrin.h>
#endif

namespace maskattn {
namespace {

inline float bits_to_float(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}

inline uint32_t float_to_bits(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}

inline float bf16_to_float(uint16_t h) { return bits_to_float(static_cast<uint32_t>(h) << 16); }

inline uint16_t float_to_bf16(float x) {
  const uint32_t bits = float_to_bits(x);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const uint32_t quiet_nan = (bits >> 16) | 0x40u;
  return static_cast<uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? quiet_nan : rounded);
}

// fp16 has 10 mantissa bits and an exponent bias of 15. Scaling by 2^112 moves its exponent range, subnormals
// included, onto fp32's; only Inf and NaN need the exponent set by hand.
inline float half_to_float(uint16_t h) {
  const uint32_t magnitude = static_cast<uint32_t>(h & 0x7fffu) << 13;
  const uint32_t sign = static_cast<uint32_t>(h & 0x8000u) << 16;
  const float scaled = bits_to_float(magnitude) * bits_to_float(0x77800000u);
  const uint32_t bits = magnitude >= 0x0f800000u ? (magnitude | 0x7f800000u) : float_to_bits(scaled);
  return bits_to_float(bits | sign);
}

inline uint16_t float_to_half(float x) {
  const uint32_t bits = float_to_bits(x);
  const uint32_t magnitude = bits & 0x7fffffffu;
  const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000u);
  if (magnitude > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u);
  if (magnitude >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);  // rounds to 65536 or more
  if (magnitude < 0x38800000u) {  // subnormal in fp16: adding 0.5 aligns the mantissa, the FPU rounds
    const float aligned = bits_to_float(magnitude) + 0.5f;
    return static_cast<uint16_t>(sign | (float_to_bits(aligned) - 0x3f000000u));
  }
  const uint32_t rounded = magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u);
  return static_cast<uint16_t>(sign | (rounded >> 13));
}

inline void half_row_to_float(const uint16_t* src, float factor, float* dst, int n) {
  int i = 0;
#if defined(__AVX512F__)
  for (; i + 16 <= n; i += 16)
    store(dst + i, factor * Vec(_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(src + i)))));
#elif defined(__F16C__)
  for (; i + 8 <= n; i += 8)
    store(dst + i, factor * Vec(_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(src + i)))));
#endif
  for (; i < n; ++i) dst[i] = factor * half_to_float(src[i]);
}

inline void float_row_to_half(const float* src, float factor, uint16_t* dst, int n) {
  int i = 0;
#if defined(__AVX512F__)
  for (; i + 16 <= n; i += 16)
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(dst + i),
                        _mm512_cvtps_ph(factor * load(src + i), _MM_FROUND_TO_NEAREST_INT));
#elif defined(__F16C__)
  for (; i + 8 <= n; i += 8)
    _mm_storeu_si128(reinterpret_cast<__m128i*>(dst + i),
                     _mm256_cvtps_ph(factor * load(src + i), _MM_FROUND_TO_NEAREST_INT));
#endif
  for (; i < n; ++i) dst[i] = float_to_half(factor * src[i]);
}

// dst[0:n] = factor * src, dst[n:padded] = 0.
inline void load_row(DType dtype, const void* src, float factor, float* __restrict dst, int n, int padded) {
  if (dtype == DType::kFloat32) {
    const auto* f = static_cast<const float*>(src);
    for (int i = 0; i < n; ++i) dst[i] = factor * f[i];
  } else if (dtype == DType::kBFloat16) {
    const auto* h = static_cast<const uint16_t*>(src);
    for (int i = 0; i < n; ++i) dst[i] = factor * bf16_to_float(h[i]);
  } else {
    half_row_to_float(static_cast<const uint16_t*>(src), factor, dst, n);
  }
  for (int i = n; i < padded; ++i) dst[i] = 0.0f;
}

// dst = factor * src.
inline void store_row(DType dtype, const float* __restrict src, float factor, void* dst, int n) {
  if (dtype == DType::kFloat32) {
    auto* f = static_cast<float*>(dst);
    for (int i = 0; i < n; ++i) f[i] = factor * src[i];
  } else if (dtype == DType::kBFloat16) {
    auto* h = static_cast<uint16_t*>(dst);
    for (int i = 0; i < n; ++i) h[i] = float_to_bf16(factor * src[i]);
  } else {
    float_row_to_half(src, factor, static_cast<uint16_t*>(dst), n);
  }
}

}  // namespace
}  // namespace maskattn
