// SPDX-License-Identifier: BSD-3-Clause
//
// The two calls of the CUDA runtime that the torch side needs.
#include <cuda_runtime.h>

namespace maskattn {

const char* error_text(int error) { return cudaGetErrorString(static_cast<cudaError_t>(error)); }

int processors_of(int device) {
  int count = 0;
  return cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device) == cudaSuccess ? count : 0;
}

}  // namespace maskattn
