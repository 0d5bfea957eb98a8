// SPDX-License-Identifier: BSD-3-Clause
//
// The backward pass, in launches without atomics, hence bitwise repeatable.
//
//     p_ij = exp(s_ij - lse_i)     delta_i = <dout_i, out_i> - dlse_i
//     ds_ij = p_ij (<dout_i, v_j> - delta_i)
//     dv_j = sum_i p_ij dout_i     dk_j = scale sum_i ds_ij q_i     dbias_j = sum_i ds_ij
//     dq_i = scale sum_j ds_ij k_j
//
// backward_queries.cu has delta_kernel (delta and lse by place in the index) and dq_kernel (queries stay, keys
// stream by), backward_keys.cu has dkdv_kernel (keys stay, queries stream by). Each computes p again: 7 products
// in place of 5, and no atomic additions into dq.
#pragma once

#include "scores.cuh"
#include "stream.cuh"

namespace maskattn {

// Sizes of the tiles that stay and of those that stream by: 64 and 32 KiB at most.
template <typename T, int kDim>
struct Backward {
  static constexpr int kRowBytes = Tile<T, kDim>::kRowBytes;
  static constexpr int kWarps = kRowBytes > 512 ? 2 : 4;
  static constexpr int kThreads = kWarps * kWarpSize;
  static constexpr int kStreamed = kRowBytes > 128 ? 8192 / kRowBytes : 64;
};

// p of one score: exp(s - lse), with scale and bias applied to the raw product s.
template <typename T>
MASKATTN_DEVICE float probability(float s, float score_scale, float bias, float lse) {
  return Scores<T>::exp(s * score_scale + bias - lse);
}

int launch_delta(const CudaBackwardParams& p, void* stream);
int launch_dq(const CudaBackwardParams& p, void* stream);
int launch_dkdv(const CudaBackwardParams& p, void* stream);

}  // namespace maskattn
