// SPDX-License-Identifier: BSD-3-Clause
//
// The few calls of the CUDA runtime that the torch side needs.
#include <cuda_runtime.h>

#include "splits.h"

namespace maskattn {

const char* error_text(int error) { return cudaGetErrorString(static_cast<cudaError_t>(error)); }

Chip chip_of(int device) {
  Chip chip;
  cudaDeviceGetAttribute(&chip.processors, cudaDevAttrMultiProcessorCount, device);
  cudaDeviceGetAttribute(&chip.shared_memory, cudaDevAttrMaxSharedMemoryPerMultiprocessor, device);
  return chip;
}

}  // namespace maskattn
