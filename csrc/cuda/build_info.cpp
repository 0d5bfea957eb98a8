// SPDX-License-Identifier: BSD-3-Clause
//
// What the CUDA library says of itself, as csrc/cpu/build_info.h has it for the CPU library: lines of "name:
// value".
extern "C" __attribute__((visibility("default"))) const char* maskattn_cuda_build_info() {
  return "compiler: " MASKATTN_COMPILER "\ntorch: " MASKATTN_TORCH "\narchs: " MASKATTN_ARCHS
         "\ncute: " MASKATTN_CUTE;
}
