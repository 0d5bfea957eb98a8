// SPDX-License-Identifier: BSD-3-Clause
//
// What the torch side hands to the CPU kernels.
#pragma once

#include "../params.h"

namespace maskattn {

using ForwardParams = ForwardCall<TensorView>;
using BackwardParams = BackwardCall<TensorView>;

// scores (rows, length) -> mask (rows, length) of the `count` highest of each row, and the lowest of these.
struct HighestParams {
  const float* scores = nullptr;
  int64_t stride_row = 0;
  int64_t rows = 0, length = 0, count = 0;  // count from 1 to length
  bool* mask = nullptr;
  float* borders = nullptr;
};

// The caller's threads: run() calls work(ctx, i) for every i in [0, n), at most `threads` at a time.
struct ThreadPool {
  int threads;
  void (*run)(int64_t n, void (*work)(void* ctx, int64_t i), void* ctx);
};

// Both throw std::runtime_error on indices outside the sequence or an impossible MASKATTN_CPU_TIER.
void launch_cpu_fwd(const ForwardParams& params, const ThreadPool& pool);
void launch_cpu_bwd(const BackwardParams& params, const ThreadPool& pool);

void launch_cpu_select_tokens(const SelectParams& params, const ThreadPool& pool);
void launch_cpu_select_highest(const HighestParams& params, const ThreadPool& pool);

// Name of the instruction-set tier a call would use now: generic, avx2, avx512, avx512_bf16, amx or
// neon_bf16.
const char* cpu_tier();

}  // namespace maskattn
