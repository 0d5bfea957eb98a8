// SPDX-License-Identifier: BSD-3-Clause
//
// The ops of masked_attention.cpp on CPU tensors, under names of their own.
#pragma once

#include "checks.h"
#include "cuda/splits.h"

#define MASKATTN_OP "twin_"
#define MASKATTN_DISPATCH_KEY CPU

namespace maskattn {

inline const char* error_text(int) { return "an error that the twin cannot have"; }

inline void check_gpu(const Tensor& t, const char* name) { check_cpu(t, name); }

struct OnDevice {
  explicit OnDevice(const Tensor&) {}
  void* stream() const { return nullptr; }
  Chip chip() const { return {12, 228 * 1024, 90}; }  // so small that small cases run with and without splits
};

}  // namespace maskattn
