// SPDX-License-Identifier: BSD-3-Clause
//
// The functions of device.cuh on the host, for tests: the kernels as they ship, one fiber for each CUDA thread,
// with every rule checked that a GPU leaves to the programmer. A broken rule raises std::runtime_error out of
// launch().
//
//   shared memory       starts as NaN; an access that no barrier orders after another thread's write to the same
//                       word (or a write after its read) is a race; so is any access to words that an unfinished
//                       copy writes. The size is exact, so AddressSanitizer sees accesses outside.
//   copy_async          copies when its thread waits, no earlier: a missing wait reads NaN, and is a race
//   lanes               all 32 must reach the same shuffle, ballot or product, and none may have ended
//   addresses           accesses of 16 bytes are at multiples of 16; rows of a matrix lie in different banks
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "block.h"

#define MASKATTN_DEVICE inline
#define MASKATTN_HOST_DEVICE inline
#define __global__
#define __grid_constant__
#define __launch_bounds__(...)

namespace maskattn {

struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};

inline int thread_index() { return twin::thread().index; }
inline uint32_t block_index() { return twin::block().index; }

inline void block_barrier() { twin::block().block_barrier(); }
inline void warp_barrier() { twin::block().warp_barrier(); }

inline float shuffle(float value, int lane) {
  return std::bit_cast<float>(twin::block().exchange("shuffle", {std::bit_cast<uint32_t>(value)})[lane][0]);
}
inline float shuffle_xor(float value, int mask) { return shuffle(value, thread_index() % kWarpSize ^ mask); }
inline uint32_t ballot(bool is_true) {
  const auto& lanes = twin::block().exchange("ballot", {is_true});
  uint32_t bits = 0;
  for (int lane = 0; lane < kWarpSize; ++lane) bits |= lanes[lane][0] << lane;
  return bits;
}
inline int bits_set(uint32_t bits) { return std::popcount(bits); }

// ---- Memory -----------------------------------------------------------------------------------------------
inline char* shared_memory() { return twin::block().shared(); }

template <typename T>
T load_shared(const T* from) {
  static_assert(sizeof(T) % 4 == 0);
  twin::block().note_read(from, sizeof(T));
  return *from;
}

template <typename T>
void store_shared(T* to, T value) {
  static_assert(sizeof(T) % 4 == 0);
  twin::block().note_write(to, sizeof(T));
  *to = value;
}

inline uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(static_cast<const char*>(p) - shared_memory());
}
inline float2 load_float2(uint32_t address) {
  return load_shared(reinterpret_cast<const float2*>(shared_memory() + address));
}
inline float4 load_float4(uint32_t address) {
  return load_shared(reinterpret_cast<const float4*>(shared_memory() + address));
}

inline void copy_async(void* to, const void* from, bool exists) { twin::block().copy(to, from, exists); }
inline void wait_copies() { twin::block().wait_copies(); }

// ---- Matrix products --------------------------------------------------------------------------------------
namespace twin {

inline const uint16_t* matrix_row(const std::array<uint32_t, kExchanged>* lanes, int lane) {
  return reinterpret_cast<const uint16_t*>(block().shared() + lanes[lane][0]);
}

inline const std::array<uint32_t, kExchanged>* matrix_rows(const char* what, uint32_t offset) {
  const auto* lanes = block().exchange(what, {offset});
  const int own = thread().index % kWarpSize;
  for (int lane = own - own % 8; lane < own; ++lane)
    check(lanes[lane][0] % 128 / 16 != offset % 128 / 16, "rows of a matrix in the same banks");
  check(offset % 16 == 0, "the row of a matrix is not at a multiple of 16 bytes");
  block().note_read(block().shared() + offset, 16);  // each row once, by the lane that names it
  return lanes;
}

inline float product_term(uint16_t a, uint16_t b, Half) { return half_to_float(a) * half_to_float(b); }
inline float product_term(uint16_t a, uint16_t b, BFloat16) {
  return std::bit_cast<float>(uint32_t{a} << 16) * std::bit_cast<float>(uint32_t{b} << 16);
}

}  // namespace twin

inline void load_matrices(uint32_t (&out)[4], uint32_t row) {
  const auto* lanes = twin::matrix_rows("ldmatrix", row);
  const int lane = thread_index() % kWarpSize;
  for (int i = 0; i < 4; ++i) {
    const uint16_t* own = twin::matrix_row(lanes, 8 * i + lane / 4) + 2 * (lane % 4);
    out[i] = own[0] | uint32_t{own[1]} << 16;
  }
}

inline void load_matrices_transposed(uint32_t (&out)[4], uint32_t row) {
  const auto* lanes = twin::matrix_rows("ldmatrix.trans", row);
  const int lane = thread_index() % kWarpSize;
  for (int i = 0; i < 4; ++i) {
    const int first = 8 * i + 2 * (lane % 4);
    out[i] = twin::matrix_row(lanes, first)[lane / 4] | uint32_t{twin::matrix_row(lanes, first + 1)[lane / 4]}
                                                            << 16;
  }
}

template <typename T>
void multiply_add(float (&c)[4], const uint32_t (&a)[4], const uint32_t* b, T t) {
  const auto* lanes = twin::block().exchange("mma", {a[0], a[1], a[2], a[3], b[0], b[1]});
  const int lane = thread_index() % kWarpSize;
  for (int k = 0; k < 16; ++k) {
    // a: registers 0, 1 are the first eight k of rows l / 4 and l / 4 + 8, registers 2, 3 the last; b: 4 and 5.
    const int holder = k % 8 / 2, shift = 16 * (k % 2), late = k / 8;
    for (int i = 0; i < 4; ++i) {
      const uint32_t x = lanes[lane / 4 * 4 + holder][2 * late + i / 2];
      const uint32_t y = lanes[(2 * (lane % 4) + i % 2) * 4 + holder][4 + late];
      c[i] += twin::product_term(static_cast<uint16_t>(x >> shift), static_cast<uint16_t>(y >> shift), t);
    }
  }
}

// ---- Numbers ----------------------------------------------------------------------------------------------
inline float exp2_fast(float x) { return std::exp2(x); }
inline uint32_t pack(float low, float high, Half) {
  return twin::float_to_half(low) | uint32_t{twin::float_to_half(high)} << 16;
}
inline uint32_t pack(float low, float high, BFloat16) {
  return twin::float_to_bfloat(low) | uint32_t{twin::float_to_bfloat(high)} << 16;
}
inline float to_float(Half x) { return twin::half_to_float(x.bits); }
inline float to_float(BFloat16 x) { return std::bit_cast<float>(uint32_t{x.bits} << 16); }
inline float to_float(float x) { return x; }

// ---- Launches ---------------------------------------------------------------------------------------------
template <typename Params>
int launch(void (*kernel)(Params), int64_t blocks, int threads, int shared_bytes, const Params& params, void*) {
  twin::check(shared_bytes <= 99 * 1024, "more than 99 KiB of shared memory, which not every chip has");
  twin::run_grid(blocks, threads, shared_bytes, [&] { kernel(params); });
  return 0;
}

}  // namespace maskattn
