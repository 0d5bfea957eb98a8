// SPDX-License-Identifier: BSD-3-Clause
//
// What the torch side asks the CUDA runtime.
#include <cuda_runtime.h>

namespace maskattn {

const char* error_text(int error) { return cudaGetErrorString(static_cast<cudaError_t>(error)); }

int processors_of(int device) {
  int count = 0;
  return cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device) == cudaSuccess ? count : 0;
}

}  // namespace maskattn
