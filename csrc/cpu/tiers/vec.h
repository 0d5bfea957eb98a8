// SPDX-License-Identifier: BSD-3-Clause
//
// The vector type of one instruction-set tier, by GCC/Clang vector extensions: the same source serves SSE2,
// NEON, AVX2 and AVX-512, and the compiler's flags decide. Everything has internal linkage: an inline
// function shared between tiers could be merged by the linker into its AVX-512 copy and crash elsewhere.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX512F__)
#include <immintrin.h>
#define MASKATTN_VECTOR_BYTES 64
#elif defined(__AVX2__)
#define MASKATTN_VECTOR_BYTES 32
#else
#define MASKATTN_VECTOR_BYTES 16
#endif

namespace maskattn {
namespace {

constexpr int kLanes = MASKATTN_VECTOR_BYTES / 4;

typedef float Vec __attribute__((vector_size(MASKATTN_VECTOR_BYTES)));
typedef int32_t IVec __attribute__((vector_size(MASKATTN_VECTOR_BYTES)));
typedef uint32_t UVec __attribute__((vector_size(MASKATTN_VECTOR_BYTES)));
typedef float UnalignedVec __attribute__((vector_size(MASKATTN_VECTOR_BYTES), aligned(1), may_alias));

// A vector of floats or of other 32-bit values, moved bit by bit.
template <class T>
inline Vec load(const T* p) {
  static_assert(sizeof(T) == 4);
  return *reinterpret_cast<const UnalignedVec*>(p);
}
template <class T>
inline void store(T* p, Vec v) {
  static_assert(sizeof(T) == 4);
  *reinterpret_cast<UnalignedVec*>(p) = v;
}
inline Vec splat(float x) { return x - Vec{}; }

inline Vec as_float(IVec v) { return reinterpret_cast<Vec>(v); }
inline IVec as_int(Vec v) { return reinterpret_cast<IVec>(v); }
inline Vec select(IVec mask, Vec a, Vec b) { return as_float((mask & as_int(a)) | (~mask & as_int(b))); }

// A NaN in `a` loses, so that a running maximum stays a number; the NaN still reaches the result through exp2.
inline Vec maximum(Vec a, Vec b) { return a > b ? a : b; }

// Whether any lane of an all-ones/all-zeros mask is set.
inline bool any(IVec mask) {
  int32_t lanes = 0;
  for (int i = 0; i < kLanes; ++i) lanes |= mask[i];
  return lanes != 0;
}

inline float sum_lanes(Vec v) {
  float lanes[kLanes];
  std::memcpy(lanes, &v, sizeof(v));
  for (int width = kLanes / 2; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) lanes[i] += lanes[i + width];
  return lanes[0];
}

// 2^x for x <= 127, to 1e-7 relative and exactly 1 at 0; exactly 0 for -inf; NaN stays NaN.
// x = n + f with an integer n, and a minimax polynomial of 2^f in relative error.
#if defined(__AVX512F__)
inline Vec exp2(Vec x) {
  const __m512 f = _mm512_reduce_ps(x, 0x09);  // x - floor(x); 0 for -inf
  Vec p = splat(1.86713005e-3f);
  p = p * f + 9.01703071e-3f;
  p = p * f + 5.57999127e-2f;
  p = p * f + 2.40164444e-1f;
  p = p * f + 6.93151295e-1f;
  p = p * f + 1.0f;
  return _mm512_scalef_ps(p, x);  // p * 2^floor(x)
}
#else
inline Vec exp2(Vec x) {
  const Vec magic = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
  const Vec shifted = x + magic;
  const Vec f = x - (shifted - magic);
  Vec p = splat(1.32647273e-3f);
  p = p * f + 9.67151299e-3f;
  p = p * f + 5.55073358e-2f;
  p = p * f + 2.40222424e-1f;
  p = p * f + 6.93147004e-1f;
  p = p * f + 1.0f;
  const Vec power = reinterpret_cast<Vec>((reinterpret_cast<UVec>(shifted) << 23) + 0x3f800000u);
  return select(x < -126.0f, Vec{}, p * power);  // the exponent field of `power` ends there
}
#endif

}  // namespace
}  // namespace maskattn
