// SPDX-License-Identifier: BSD-3-Clause
//
// All that the kernels need from a GPU: indices of threads and blocks, barriers, exchange between the lanes of a
// warp, shared memory, asynchronous copies, matrix products, launches. The kernels use nothing else, so the same
// source also compiles for the host, where tests/cuda_twin/device.h implements each function with checks.
//
// Everything here exists from compute capability 8.0 on (PTX ISA 7.1).
#pragma once

#include <cstddef>
#include <cstdint>

namespace maskattn {

constexpr int kWarpSize = 32;

// Floating-point numbers of 16 bits as they lie in memory.
struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

}  // namespace maskattn

#ifdef MASKATTN_TWIN
#include "cuda_twin/device.h"
#else

#include <cuda_runtime.h>

#define MASKATTN_DEVICE __device__ __forceinline__
#define MASKATTN_HOST_DEVICE __host__ __device__ inline

namespace maskattn {

MASKATTN_DEVICE int thread_index() { return static_cast<int>(threadIdx.x); }
MASKATTN_DEVICE uint32_t block_index() { return blockIdx.x; }

MASKATTN_DEVICE void block_barrier() { __syncthreads(); }
MASKATTN_DEVICE void warp_barrier() { __syncwarp(); }

MASKATTN_DEVICE float shuffle(float value, int lane) { return __shfl_sync(0xffffffffu, value, lane); }
MASKATTN_DEVICE float shuffle_xor(float value, int mask) { return __shfl_xor_sync(0xffffffffu, value, mask); }
MASKATTN_DEVICE uint32_t ballot(bool is_true) { return __ballot_sync(0xffffffffu, is_true); }
MASKATTN_DEVICE int bits_set(uint32_t bits) { return __popc(bits); }

// ---- Memory -----------------------------------------------------------------------------------------------
MASKATTN_DEVICE char* shared_memory() {
  extern __shared__ __align__(128) char memory[];
  return memory;
}

template <typename T>
MASKATTN_DEVICE T load_shared(const T* from) {
  return *from;
}

template <typename T>
MASKATTN_DEVICE void store_shared(T* to, T value) {
  *to = value;
}

// The address in shared memory that p points to, as a number.
MASKATTN_DEVICE uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

MASKATTN_DEVICE float2 load_float2(uint32_t address) {
  float2 x;
  asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(x.x), "=f"(x.y) : "r"(address) : "memory");
  return x;
}

MASKATTN_DEVICE float4 load_float4(uint32_t address) {
  float4 x;
  asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];"
               : "=f"(x.x), "=f"(x.y), "=f"(x.z), "=f"(x.w)
               : "r"(address)
               : "memory");
  return x;
}

// Starts a copy of 16 bytes from global to shared memory; with `exists` false it writes 16 zero bytes.
MASKATTN_DEVICE void copy_async(void* to, const void* from, bool exists) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from),
               "r"(exists ? 16 : 0)
               : "memory");
}

// Waits for this thread's copies; those of other threads are there after the next barrier.
MASKATTN_DEVICE void wait_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }

// ---- Matrix products --------------------------------------------------------------------------------------
// Four 8 x 8 matrices of 16-bit numbers: lane l passes the address of row l % 8 of matrix l / 8, and receives
// from every matrix the two neighbours 2 * (l % 4), 2 * (l % 4) + 1 of row l / 4.
MASKATTN_DEVICE void load_matrices(uint32_t (&out)[4], uint32_t row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(row)
               : "memory");
}

// The same for the transposed matrices.
MASKATTN_DEVICE void load_matrices_transposed(uint32_t (&out)[4], uint32_t row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(row)
               : "memory");
}

// c += a b, for a (16 x 16), b (16 x 8) and c (16 x 8) spread over the warp as PTX lays them out for m16n8k16:
// lane l holds of c the neighbours 2 * (l % 4), 2 * (l % 4) + 1 of rows l / 4 and l / 4 + 8.
MASKATTN_DEVICE void multiply_add(float (&c)[4], const uint32_t (&a)[4], const uint32_t* b, Half) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

MASKATTN_DEVICE void multiply_add(float (&c)[4], const uint32_t (&a)[4], const uint32_t* b, BFloat16) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// ---- Numbers ----------------------------------------------------------------------------------------------
MASKATTN_DEVICE float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// Two numbers, rounded to nearest, the first in the lower half.
MASKATTN_DEVICE uint32_t pack(float low, float high, Half) {
  uint32_t bits;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(high), "f"(low));
  return bits;
}

MASKATTN_DEVICE uint32_t pack(float low, float high, BFloat16) {
  uint32_t bits;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(high), "f"(low));
  return bits;
}

MASKATTN_DEVICE float to_float(Half x) {
  float y;
  asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
  return y;
}

MASKATTN_DEVICE float to_float(float x) { return x; }
MASKATTN_DEVICE float to_float(BFloat16 x) { return __uint_as_float(static_cast<uint32_t>(x.bits) << 16); }

// ---- Launches ---------------------------------------------------------------------------------------------
// The one place that launches a kernel. Returns a cudaError_t; grids have one dimension, whose limit is 2^31 - 1.
template <typename Params>
int launch(void (*kernel)(Params), int64_t blocks, int threads, int shared_bytes, const Params& params,
           void* stream) {
  if (blocks == 0) return cudaSuccess;
  if (blocks > INT32_MAX) return cudaErrorInvalidConfiguration;
  if (shared_bytes > 48 * 1024) {
    const cudaError_t error =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes);
    if (error != cudaSuccess) return error;
  }
  const auto on = static_cast<cudaStream_t>(stream);
  const auto grid = static_cast<uint32_t>(blocks);
  // clang-format off: it takes the brackets apart
  kernel<<<grid, threads, shared_bytes, on>>>(params);
  // clang-format on
  return cudaGetLastError();
}

}  // namespace maskattn
#endif
