// SPDX-License-Identifier: BSD-3-Clause
//
// The interface between the torch side (which checks and allocates) and the kernels (which never see a torch
// header), as far as all backends share it: plain pointers, sizes and strides of one call. Strides count elements;
// a stride of 0 broadcasts. The last dimension of every (B, H, N, D) tensor has unit stride. What only one backend
// takes is in its own params.h.
#pragma once

#include <cstddef>
#include <cstdint>

namespace maskattn {

enum class DType : int32_t { kFloat32, kFloat16, kBFloat16 };

constexpr int64_t element_size(DType dtype) { return dtype == DType::kFloat32 ? 4 : 2; }

constexpr int kMaxHeadDim = 256;

// A (B, H, N, D) tensor.
struct TensorView {
  void* data = nullptr;
  int64_t stride_b = 0, stride_h = 0, stride_n = 0;
};

// A (B, H, N) float32 tensor; data == nullptr means "absent".
struct RowView {
  float* data = nullptr;
  int64_t stride_b = 0, stride_h = 0, stride_n = 0;
};

// Selected tokens of every (b, h): ascending indices (B, H, N) and counts (B, H). indices == nullptr selects all,
// or as many as counts says.
struct SelectionView {
  const int32_t* indices = nullptr;
  int64_t stride_b = 0, stride_h = 0;
  const int32_t* counts = nullptr;
  int64_t count_stride_b = 0, count_stride_h = 0;
};

// One forward pass. View is how the backend sees a (B, H, N, D) tensor: a TensorView, or one that says more.
template <class View>
struct ForwardCall {
  DType dtype = DType::kFloat32;
  int64_t batch = 0, heads_q = 0, heads_kv = 0, seqlen_q = 0, seqlen_k = 0;
  int head_dim = 0;
  float scale = 0.0f;
  View q, k, v, out;
  RowView lse, key_bias;
  SelectionView queries, keys;
};

template <class View>
struct BackwardCall : ForwardCall<View> {
  View dout, dq, dk, dv;
  RowView dlse, dbias;  // dbias is contiguous and present exactly when key_bias is
};

// mask (B, H, N) bool with any strides -> indices (B, H, N) contiguous, counts (B, H) contiguous.
struct SelectParams {
  const bool* mask = nullptr;
  int64_t stride_b = 0, stride_h = 0, stride_n = 0;
  int64_t batch = 0, heads = 0, seqlen = 0;
  int32_t* indices = nullptr;
  int32_t* counts = nullptr;
};

}  // namespace maskattn
