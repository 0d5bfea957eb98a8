// SPDX-License-Identifier: BSD-3-Clause
//
// Where the ops of masked_attention.cpp run: on the current stream of a tensor's GPU. In tests,
// tests/cuda_twin/cpu.h makes them run on the CPU.
#pragma once

#ifdef MASKATTN_TWIN
#include "cuda_twin/cpu.h"
#else

#include <dlfcn.h>
#include <torch/csrc/stable/accelerator.h>

#include "../checks.h"
#include "splits.h"

#define MASKATTN_OP "cuda_"
#define MASKATTN_DISPATCH_KEY CUDA

namespace maskattn {

// Both in device.cu.
const char* error_text(int error);
Chip chip_of(int device);  // what is unknown is 0

inline void check_gpu(const Tensor& t, const char* name) {
  if (!t.is_cuda()) reject(name, "device cuda", device_of(t));
}

// torch's current stream, from a function of libtorch_cuda. It is looked up at run time, so that the library can
// also be built against a torch without CUDA.
inline void* current_stream(int device) {
  using Get = AOTITorchError (*)(int32_t device_index, void** ret_stream);
  static const auto get = [] {
    void* library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
    return reinterpret_cast<Get>(library ? dlsym(library, "aoti_torch_get_current_cuda_stream") : nullptr);
  }();
  void* stream = nullptr;
  if (get == nullptr || get(device, &stream) != AOTI_TORCH_SUCCESS)
    throw std::runtime_error("no current CUDA stream: libtorch_cuda.so is not loaded, or knows none");
  return stream;
}

// Makes a tensor's device the current one for its own lifetime.
class OnDevice {
 public:
  explicit OnDevice(const Tensor& t) : index_(t.get_device_index()), guard_(index_) {}

  void* stream() const { return current_stream(index_); }
  Chip chip() const { return chip_of(index_); }

 private:
  int index_;
  torch::stable::accelerator::DeviceGuard guard_;
};

}  // namespace maskattn
#endif
