// SPDX-License-Identifier: BSD-3-Clause
//
// The forward kernels in CuTe-DSL (csrc/cute), compiled when the library was built and launched in place of
// forward.cu where MASKATTN_CUDA_CUTE=1 asks for them: a GPU has run a part of the cases only, hence the switch.
#pragma once

#include "params.h"

namespace maskattn {

// One kernel for one chip, as csrc/cute/compile_kernels.py writes it down.
struct CuteKernel {
  int capability;  // 90: compute capability 9.0, and no other
  DType dtype;
  int width;    // largest head dim
  int queries;  // that a block owns
  int threads, shared_bytes;
  const char* symbol;
  const void* cubin;
};

struct CuteKernels {
  const CuteKernel* first;
  int count;
};

// The arguments of a kernel: class Call of csrc/cute/token_rows.py, field by field, and the scale.
struct CuteCall {
  int64_t q, q_b, q_h, q_n;
  int64_t k, k_b, k_h, k_n;
  int64_t v, v_b, v_h, v_n;
  int64_t out, out_b, out_h, out_n;
  int64_t lse;
  int64_t queries, queries_b, queries_h, query_counts, query_counts_b, query_counts_h;
  int64_t keys, keys_b, keys_h, key_counts, key_counts_b, key_counts_h;
  int64_t bias, bias_b, bias_h, bias_n;
  int64_t heads_q, heads_kv, seqlen_q, seqlen_k, head_dim;
  float scale;
};

// Those of this build: written by csrc/cute/compile_kernels.py, or none (no_cute.cpp).
CuteKernels cute_kernels();

// Whether MASKATTN_CUDA_CUTE asks for them; throws for a value that is neither 0 nor 1.
bool cute_is_asked();

// The kernel of a call; throws, in one line, where there is none.
const CuteKernel& choose_cute(const CudaForwardParams& params, const Chip& chip);

CuteCall cute_call(const CudaForwardParams& params);

// In device.cu. Returns a cudaError_t and waits for nothing.
int launch_cute_fwd(const CuteKernel& kernel, const CudaForwardParams& params, void* stream);

}  // namespace maskattn
