// SPDX-License-Identifier: BSD-3-Clause
//
// What the torch side hands to the CUDA kernels.
#pragma once

#include "../params.h"
#include "splits.h"

namespace maskattn {

// A (B, H, N, D) tensor on a GPU.
struct GpuView : TensorView {
  bool aligned = false;  // rows of whole 16 bytes, at multiples of 16 bytes
};

// What functions of both passes take.
using CudaParams = ForwardCall<GpuView>;

// A (B, H, N) bool tensor; data == nullptr selects all.
struct MaskView {
  const bool* data = nullptr;
  int64_t stride_b = 0, stride_h = 0, stride_n = 0;
};

// Selected keys in the order of the index; k.data == nullptr if the keys are not packed.
struct KeyPack {
  GpuView k, v;
  RowView bias;  // 0 without a key_bias
};

// One call as the CUDA kernels take it. Their launches return a cudaError_t and wait for nothing. The pointers
// lead into a workspace: lay_out_cuda_*() gives its size and sets them.
struct CudaForwardParams : CudaParams {
  MaskView query_mask, key_mask;  // in place of queries and keys, for no more than kShort tokens each
  KeyPack packed;
  int splits = 1;             // blocks that share the keys of a block of queries; if not 1, with
  float* part_out = nullptr;  // (splits, B, Hq, Nq, width of a tile) and
  float* part_lse = nullptr;  // (splits, B, Hq, Nq), both by place in the index
};

struct CudaBackwardParams : BackwardCall<GpuView> {
  KeyPack packed;
  GpuView packed_q, packed_dout;  // by place in the index; data == nullptr if not packed
  float* terms = nullptr;         // (B, Hq, Nq, 2), by place in the index: lse in units of the scores, and delta
  int splits = 1;                 // blocks that share the queries of a block of keys; if not 1, with
  float *part_dk = nullptr, *part_dv = nullptr;  // (B, Hkv, splits, Nk, width of a tile) and, for a key_bias,
  float* part_dbias = nullptr;                   // (B, Hkv, splits, Nk), all by place in the index
};

constexpr int kShort = 256;  // tokens that a block of the forward pass can list by itself

int cuda_fwd_splits(const CudaParams& params, const Chip& chip);
int cuda_bwd_splits(const CudaParams& params, const Chip& chip);
// Sets all pointers into a workspace and returns its size in bytes; with nullptr it only returns the size.
int64_t lay_out_cuda_fwd(CudaForwardParams& params, void* workspace);
int64_t lay_out_cuda_bwd(CudaBackwardParams& params, void* workspace);
int launch_cuda_fwd(const CudaForwardParams& params, void* stream);
int launch_cuda_bwd(const CudaBackwardParams& params, void* stream);
int launch_cuda_select_tokens(const SelectParams& params, void* stream);

}  // namespace maskattn
