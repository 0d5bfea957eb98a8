// SPDX-License-Identifier: BSD-3-Clause
//
// The whole interface between the torch side (which checks and allocates) and the kernels (which never
// see a torch header): plain pointers, sizes and strides of one call. Strides count elements; a stride of
// 0 broadcasts. The last dimension of every (B, H, N, D) tensor has unit stride.
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
  bool aligned = false;  // rows of whole 16 bytes, at multiples of 16 bytes; known to the CUDA kernels only
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

struct ForwardParams {
  DType dtype = DType::kFloat32;
  int64_t batch = 0, heads_q = 0, heads_kv = 0, seqlen_q = 0, seqlen_k = 0;
  int head_dim = 0;
  float scale = 0.0f;
  TensorView q, k, v, out;
  RowView lse, key_bias;
  SelectionView queries, keys;
};

struct BackwardParams : ForwardParams {
  TensorView dout, dq, dk, dv;
  RowView dlse, dbias;  // dbias is contiguous and present exactly when key_bias is
};

// The caller's threads: run() calls work(ctx, i) for every i in [0, n), at most `threads` at a time.
struct ThreadPool {
  int threads;
  void (*run)(int64_t n, void (*work)(void* ctx, int64_t i), void* ctx);
};

// Both throw std::runtime_error on indices outside the sequence or an impossible MASKATTN_CPU_TIER.
void launch_cpu_fwd(const ForwardParams& params, const ThreadPool& pool);
void launch_cpu_bwd(const BackwardParams& params, const ThreadPool& pool);

// A (B, H, N) bool tensor; data == nullptr selects all.
struct MaskView {
  const bool* data = nullptr;
  int64_t stride_b = 0, stride_h = 0, stride_n = 0;
};

// Selected keys in the order of the index; k.data == nullptr where they are read from where they are.
struct KeyPack {
  TensorView k, v;
  RowView bias;  // 0 where there is none
};

// What the CUDA kernels take besides. Their launches return a cudaError_t and wait for nothing. The pointers lead
// into a workspace; its size, and they, come from lay_out_cuda_*().
struct CudaForwardParams : ForwardParams {
  MaskView query_mask, key_mask;  // in place of queries and keys, for no more than kShort tokens each
  KeyPack packed;
  int splits = 1;             // blocks that share the keys of a block of queries; if not 1, with
  float* part_out = nullptr;  // (splits, B, Hq, Nq, width of a tile) and
  float* part_lse = nullptr;  // (splits, B, Hq, Nq), both by place in the index
};

struct CudaBackwardParams : BackwardParams {
  KeyPack packed;
  TensorView packed_q, packed_dout;  // by place in the index; data == nullptr as above
  float* terms = nullptr;  // (B, Hq, Nq, 2), by place in the index: lse in units of the scores, and delta
};

constexpr int kShort = 256;  // tokens that a block of the forward pass can list by itself

int cuda_fwd_splits(const ForwardParams& params, int processors);
// Places everything in a workspace, and tells how many bytes it takes, which is all that it does with nullptr.
int64_t lay_out_cuda_fwd(CudaForwardParams& params, void* workspace);
int64_t lay_out_cuda_bwd(CudaBackwardParams& params, void* workspace);
int launch_cuda_fwd(const CudaForwardParams& params, void* stream);
int launch_cuda_bwd(const CudaBackwardParams& params, void* stream);

// mask (B, H, N) bool with any strides -> indices (B, H, N) contiguous, counts (B, H) contiguous.
struct SelectParams {
  const bool* mask = nullptr;
  int64_t stride_b = 0, stride_h = 0, stride_n = 0;
  int64_t batch = 0, heads = 0, seqlen = 0;
  int32_t* indices = nullptr;
  int32_t* counts = nullptr;
};
void launch_cpu_select_tokens(const SelectParams& params, const ThreadPool& pool);
int launch_cuda_select_tokens(const SelectParams& params, void* stream);

// Name of the instruction-set tier a call would use now: generic, avx2, avx512 or amx.
const char* cpu_tier();

}  // namespace maskattn
