// SPDX-License-Identifier: BSD-3-Clause
//
// When a kernel in CuTe-DSL runs, which one, and with which arguments.
#include "cute.h"

#include <cstdlib>
#include <stdexcept>
#include <string>

namespace maskattn {
namespace {

[[noreturn]] void refuse(const std::string& expected, const std::string& got) {
  throw std::runtime_error("MASKATTN_CUDA_CUTE: expected " + expected + ", got " + got);
}

int64_t address(const void* data) { return reinterpret_cast<int64_t>(data); }

}  // namespace

bool cute_is_asked() {
  const char* asked = std::getenv("MASKATTN_CUDA_CUTE");
  if (asked == nullptr) return false;
  const std::string value = asked;
  if (value != "0" && value != "1") refuse("0 or 1", "'" + value + "'");
  return value == "1";
}

const CuteKernel& choose_cute(const CudaForwardParams& p, const Chip& chip) {
  const CuteKernels kernels = cute_kernels();
  if (kernels.count == 0)
    refuse("a CUDA library that was built where nvidia-cutlass-dsl is installed", "one without its kernels");
  if (p.dtype == DType::kFloat32) refuse("bfloat16 or float16", "float32");
  if (!(p.q.aligned && p.k.aligned && p.v.aligned && p.out.aligned))
    refuse("rows of whole 16 bytes at multiples of 16 bytes (head_dim a multiple of 8)",
           "others, with head_dim " + std::to_string(p.head_dim));
  const CuteKernel* found = nullptr;
  for (const CuteKernel* kernel = kernels.first; kernel != kernels.first + kernels.count; ++kernel)
    if (kernel->capability == chip.capability && kernel->dtype == p.dtype && kernel->width >= p.head_dim &&
        (found == nullptr || kernel->width < found->width))
      found = kernel;
  if (found == nullptr)
    refuse("compute capability 9.0 with a head_dim of at most 256, or 10.0 with at most 128",
           std::to_string(chip.capability / 10) + "." + std::to_string(chip.capability % 10) + " with " +
               std::to_string(p.head_dim));
  return *found;
}

CuteCall cute_call(const CudaForwardParams& p) {
  const SelectionView &queries = p.queries, &keys = p.keys;
  return {
      address(p.q.data),
      p.q.stride_b,
      p.q.stride_h,
      p.q.stride_n,
      address(p.k.data),
      p.k.stride_b,
      p.k.stride_h,
      p.k.stride_n,
      address(p.v.data),
      p.v.stride_b,
      p.v.stride_h,
      p.v.stride_n,
      address(p.out.data),
      p.out.stride_b,
      p.out.stride_h,
      p.out.stride_n,
      address(p.lse.data),
      address(queries.indices),
      queries.stride_b,
      queries.stride_h,
      address(queries.counts),
      queries.count_stride_b,
      queries.count_stride_h,
      address(keys.indices),
      keys.stride_b,
      keys.stride_h,
      address(keys.counts),
      keys.count_stride_b,
      keys.count_stride_h,
      address(p.key_bias.data),
      p.key_bias.stride_b,
      p.key_bias.stride_h,
      p.key_bias.stride_n,
      p.heads_q,
      p.heads_kv,
      p.seqlen_q,
      p.seqlen_k,
      p.head_dim,
      p.scale,
  };
}

}  // namespace maskattn
