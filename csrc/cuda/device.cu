// SPDX-License-Identifier: BSD-3-Clause
//
// The few calls of the CUDA runtime that the torch side needs.
#include <cuda_runtime.h>

#include <cstddef>
#include <map>
#include <mutex>

#include "cute.h"

namespace maskattn {

const char* error_text(int error) { return cudaGetErrorString(static_cast<cudaError_t>(error)); }

Chip chip_of(int device) {
  Chip chip;
  cudaDeviceGetAttribute(&chip.processors, cudaDevAttrMultiProcessorCount, device);
  cudaDeviceGetAttribute(&chip.shared_memory, cudaDevAttrMaxSharedMemoryPerMultiprocessor, device);
  int major = 0, minor = 0;
  cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
  chip.capability = 10 * major + minor;
  return chip;
}

#if CUDART_VERSION >= 12080
namespace {

// The kernel on the GPUs of this process. Its code is loaded once, by its first launch on each.
cudaError_t load(const CuteKernel& kernel, cudaKernel_t& function) {
  static std::mutex lock;
  static std::map<const CuteKernel*, cudaKernel_t> loaded;
  const std::lock_guard<std::mutex> guard(lock);
  const auto found = loaded.find(&kernel);
  if (found != loaded.end()) return function = found->second, cudaSuccess;
  cudaLibrary_t library;
  cudaError_t error = cudaLibraryLoadData(&library, kernel.cubin, nullptr, nullptr, 0, nullptr, nullptr, 0);
  if (error == cudaSuccess) error = cudaLibraryGetKernel(&function, library, kernel.symbol);
  if (error == cudaSuccess) loaded[&kernel] = function;
  return error;
}

}  // namespace

int launch_cute_fwd(const CuteKernel& kernel, const CudaForwardParams& p, void* stream) {
  constexpr size_t kWords = offsetof(CuteCall, scale) / sizeof(int64_t);
  const int64_t blocks = p.batch * p.heads_q * ((p.seqlen_q + kernel.queries - 1) / kernel.queries);
  if (blocks > INT32_MAX) return cudaErrorInvalidConfiguration;
  cudaKernel_t function;
  cudaError_t error = load(kernel, function);
  if (error != cudaSuccess) return error;
  const void* entry = static_cast<const void*>(function);
  error = cudaFuncSetAttribute(entry, cudaFuncAttributeMaxDynamicSharedMemorySize, kernel.shared_bytes);
  if (error != cudaSuccess) return error;

  CuteCall call = cute_call(p);
  void* arguments[kWords + 1];
  for (size_t i = 0; i < kWords; ++i) arguments[i] = &call.q + i;
  arguments[kWords] = &call.scale;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<uint32_t>(blocks));
  config.blockDim = dim3(static_cast<uint32_t>(kernel.threads));
  config.dynamicSmemBytes = static_cast<size_t>(kernel.shared_bytes);
  config.stream = static_cast<cudaStream_t>(stream);
  return cudaLaunchKernelExC(&config, entry, arguments);
}
#else
int launch_cute_fwd(const CuteKernel&, const CudaForwardParams&, void*) { return cudaErrorNotSupported; }
#endif

}  // namespace maskattn
