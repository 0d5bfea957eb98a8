// SPDX-License-Identifier: BSD-3-Clause
//
// Scores as the kernels keep them: in units of log2(e), which makes exp(s) a bare exp2, with scale and bias folded
// into one multiply-add; in units of 1 for float32, so that lse and score of a lone key are equal to the last bit.
#pragma once

#include "tiles.cuh"

namespace maskattn {

constexpr float kLog2e = 1.4426950408889634f;
constexpr float kInfinity = __builtin_huge_valf();

template <typename T>
struct Scores {
  static constexpr float kUnit = kLog2e;
  MASKATTN_DEVICE static float exp(float s) { return exp2_fast(s); }
};

template <>
struct Scores<float> {
  static constexpr float kUnit = 1.0f;
  MASKATTN_DEVICE static float exp(float s) { return exp2f(s * kLog2e); }
};

// Sum and maximum over the four lanes that share a row of an accumulator.
MASKATTN_DEVICE float row_sum(float x) {
  x += shuffle_xor(x, 1);
  return x + shuffle_xor(x, 2);
}

MASKATTN_DEVICE float row_max(float x) {
  x = fmaxf(x, shuffle_xor(x, 1));
  return fmaxf(x, shuffle_xor(x, 2));
}

// What is added to the score of a key: its bias; -inf where there is no key. A key whose bias is -inf takes no
// part, and is not read: what it holds must not be seen.
struct KeyBias {
  const float* data;  // nullptr: none
  int64_t stride;
  float unit;

  MASKATTN_DEVICE float operator()(int token) const {
    if (token == kNoToken) return -kInfinity;
    return data == nullptr ? 0.0f : data[token * stride] * unit;
  }

  // The token, or kNoToken if it takes no part.
  MASKATTN_DEVICE int in_play(int token) const {
    if (token == kNoToken || data == nullptr) return token;
    return data[token * stride] == -kInfinity ? kNoToken : token;
  }
};

template <typename T>
MASKATTN_DEVICE KeyBias key_bias_of(const CudaParams& p, int64_t b, int64_t kv_head) {
  const RowView& bias = p.key_bias;
  if (bias.data == nullptr) return {nullptr, 0, 0.0f};
  return {bias.data + b * bias.stride_b + kv_head * bias.stride_h, bias.stride_n, Scores<T>::kUnit};
}

// The width of a tile, as a type.
template <int kWidth>
struct Width {
  static constexpr int value = kWidth;
};

template <typename T, typename Launch>
int for_width(int head_dim, Launch launch) {
  if (head_dim <= 32) return launch(T{}, Width<32>{});
  if (head_dim <= 64) return launch(T{}, Width<64>{});
  if (head_dim <= 128) return launch(T{}, Width<128>{});
  return launch(T{}, Width<256>{});
}

// Calls launch(T{}, Width<...>{}) for the dtype and the narrowest tile that holds head_dim.
template <typename Launch>
int for_instance(const CudaParams& p, Launch launch) {
#ifndef MASKATTN_ONLY_BFLOAT16  // a third of the compile time, for tests that look at compilers and sanitizers
  if (p.dtype == DType::kFloat16) return for_width<Half>(p.head_dim, launch);
  if (p.dtype == DType::kFloat32) return for_width<float>(p.head_dim, launch);
#endif
  return for_width<BFloat16>(p.head_dim, launch);
}

}  // namespace maskattn
