// SPDX-License-Identifier: BSD-3-Clause
//
// Tiles in shared memory, and the two products that every kernel here is made of. A warp owns 16 * M rows of its
// results, which lie in registers as the tensor cores leave them: accumulator c[m][n] is rows 16 m to 16 m + 15,
// columns 8 n to 8 n + 7, of which a lane holds two neighbours in row lane / 4 (c[m][n][0], [1]) and two in the
// row 8 below ([2], [3]).
//
//   add_nt   c += A B^T   A and B in shared memory
//   add_nn   c += P B     P in registers, just computed and laid out as above; B in shared memory
//
// So scores, their softmax and what they multiply never leave the registers (FlashAttention-2, arXiv:2307.08691).
// For 16-bit numbers both are mma.sync; for float32 the same accumulators are filled by multiply-adds, since TF32
// would round to 10 bits.
#pragma once

#include "tokens.cuh"

namespace maskattn {

// Rows of kDim numbers, their 16-byte chunks permuted (by an exclusive or with the row) so that the same chunk of
// 8 successive rows lies in 8 different sets of banks.
template <typename T, int kDim>
struct Tile {
  static constexpr int kRowBytes = kDim * static_cast<int>(sizeof(T));
  static constexpr int kChunks = kRowBytes / 16;
  static constexpr int kPerChunk = 16 / static_cast<int>(sizeof(T));

  char* data;

  MASKATTN_DEVICE char* chunk(int row, int chunk) const {
    const int turn =
        kChunks >= 8 ? row % 8 : row / 2 % 4;  // two rows of 4 chunks share the 128 bytes of all banks
    return data + row * kRowBytes + (chunk ^ turn) * 16;
  }

  MASKATTN_DEVICE T* at(int row, int column) const {
    return reinterpret_cast<T*>(chunk(row, column / kPerChunk)) + column % kPerChunk;
  }
};

// From the address of a chunk to that of the chunk whose number is its own ^ `chunks`. Where
// that is known at compile time, the products below need few registers for addresses: an exclusive or and an
// offset.
MASKATTN_DEVICE uint32_t along(uint32_t address, int chunks) {
  return (address ^ (16 * chunks & 127)) + (16 * chunks & ~127);
}

// One (b, h) of a (B, H, N, D) tensor. The stride counts numbers, as in the parameters: it then stays in constant
// memory and takes no register.
template <typename T>
struct Rows {
  T* data;
  int64_t stride;
  int head_dim;
  bool aligned;  // rows begin at multiples of 16 bytes and have such a length: whole chunks can be moved

  MASKATTN_DEVICE T* row(int token) const { return data + token * stride; }
};

template <typename T>
MASKATTN_DEVICE Rows<T> rows_of(const GpuView& t, int64_t b, int64_t h, int head_dim) {
  return {static_cast<T*>(t.data) + (b * t.stride_b + h * t.stride_h), t.stride_n, head_dim, t.aligned};
}

template <typename T>
union Chunk {
  uint4 bits;
  T numbers[16 / sizeof(T)];
};

template <typename T>
MASKATTN_DEVICE Chunk<T> load_numbers(const Rows<T>& from, int token, int chunk) {
  constexpr int kPerChunk = 16 / sizeof(T);
  const int column = chunk * kPerChunk;
  Chunk<T> c;
  c.bits = uint4{0, 0, 0, 0};
  if (token != kNoToken)
#pragma unroll
    for (int j = 0; j < kPerChunk; ++j)
      if (column + j < from.head_dim) c.numbers[j] = from.row(token)[column + j];
  return c;
}

// Starts to gather the rows of `tokens` (kRows ints in shared memory) into a tile; zeros for kNoToken and for
// columns from head_dim on. Done after wait_copies() and a barrier.
template <int kRows, int kThreads, typename T, int kDim>
MASKATTN_DEVICE void gather(const Tile<T, kDim>& tile, const Rows<T>& from, const int* tokens) {
  constexpr int kChunks = Tile<T, kDim>::kChunks, kPerChunk = Tile<T, kDim>::kPerChunk;
  static_assert(kRows * kChunks % kThreads == 0 && kThreads % kChunks == 0);
  const int chunk = thread_index() % kChunks, column = chunk * kPerChunk;
  if (from.aligned) {
    const bool is_column = column < from.head_dim;
#pragma unroll 1  // the registers are full of accumulators
    for (int row = thread_index() / kChunks; row < kRows; row += kThreads / kChunks) {
      const int token = load_shared(tokens + row);
      const bool exists = is_column && token != kNoToken;
      copy_async(tile.chunk(row, chunk), exists ? from.row(token) + column : from.data, exists);
    }
  } else {
#pragma unroll 1
    for (int row = thread_index() / kChunks; row < kRows; row += kThreads / kChunks) {
      const auto numbers = load_numbers(from, load_shared(tokens + row), chunk);
      store_shared(reinterpret_cast<uint4*>(tile.chunk(row, chunk)), numbers.bits);
    }
  }
}

template <typename T>
MASKATTN_DEVICE void store_chunk(const Rows<T>& to, int token, int chunk, Chunk<T> c) {
  constexpr int kPerChunk = 16 / sizeof(T);
  const int column = chunk * kPerChunk;
  if (column >= to.head_dim) return;
  if (to.aligned) {
    *reinterpret_cast<uint4*>(to.row(token) + column) = c.bits;
  } else {
#pragma unroll
    for (int j = 0; j < kPerChunk; ++j)
      if (column + j < to.head_dim) to.row(token)[column + j] = c.numbers[j];
  }
}

// A warp writes zeros to the row of one token.
template <typename T>
MASKATTN_DEVICE void store_zeros(const Rows<T>& to, int token) {
  Chunk<T> nothing;
  nothing.bits = uint4{0, 0, 0, 0};
  const int chunks = (to.head_dim * static_cast<int>(sizeof(T)) + 15) / 16;
  for (int chunk = lane_index(); chunk < chunks; chunk += kWarpSize) store_chunk(to, token, chunk, nothing);
}

MASKATTN_DEVICE float from_float(float x, float) { return x; }

template <typename T>
MASKATTN_DEVICE T from_float(float x, T) {
  return {static_cast<uint16_t>(pack(x, 0.0f, T{}))};
}

MASKATTN_DEVICE void store_pair(float* to, float low, float high) {
  store_shared(reinterpret_cast<float2*>(to), float2{low, high});
}

template <typename T>
MASKATTN_DEVICE void store_pair(T* to, float low, float high) {
  store_shared(reinterpret_cast<uint32_t*>(to), pack(low, high, T{}));
}

// Writes a warp's accumulators to the rows of `tokens`, through the warp's own rows of a tile, which no other warp
// reads: so it stores whole chunks of a row at a time. c is multiplied by `factor` of its row.
template <typename T, int kDim, int M, typename Factor>
MASKATTN_DEVICE void scatter(const float (&c)[M][kDim / 8][4], Factor factor, const Tile<T, kDim>& tile,
                             int first_row, const int* tokens, const Rows<T>& to) {
  constexpr int kChunks = Tile<T, kDim>::kChunks;
  const int row = first_row + lane_index() / 4, column = 2 * (lane_index() % 4);
  warp_barrier();
#pragma unroll
  for (int m = 0; m < M; ++m)
#pragma unroll
    for (int n = 0; n < kDim / 8; ++n)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float f = factor(m, half);
        store_pair(tile.at(row + 16 * m + 8 * half, 8 * n + column), c[m][n][2 * half] * f,
                   c[m][n][2 * half + 1] * f);
      }
  warp_barrier();
#pragma unroll 2
  for (int i = lane_index(); i < 16 * M * kChunks; i += kWarpSize) {
    const int r = first_row + i / kChunks, chunk = i % kChunks;
    const int token = load_shared(tokens + r);
    Chunk<T> numbers;
    numbers.bits = load_shared(reinterpret_cast<const uint4*>(tile.chunk(r, chunk)));
    if (token != kNoToken) store_chunk(to, token, chunk, numbers);
  }
}

// The same to rows of kDim float32 numbers, one for each of `tokens`: what a later launch adds up.
template <int kDim, int M, typename Factor>
MASKATTN_DEVICE void store_part(const float (&c)[M][kDim / 8][4], Factor factor, int first_row, const int* tokens,
                                float* to) {
  const int row = first_row + lane_index() / 4, column = 2 * (lane_index() % 4);
#pragma unroll
  for (int m = 0; m < M; ++m)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int r = row + 16 * m + 8 * half;
      if (load_shared(tokens + r) == kNoToken) continue;
      const float f = factor(m, half);
      auto* pairs = reinterpret_cast<float2*>(to + r * kDim + column);
#pragma unroll
      for (int n = 0; n < kDim / 8; ++n) pairs[4 * n] = float2{c[m][n][2 * half] * f, c[m][n][2 * half + 1] * f};
    }
}

// ---- c += A B^T: rows [a_row, a_row + 16 M) of tile a, rows [0, 8 N) of tile b ----------------------------
template <typename T, int kDim, int M, int N>
MASKATTN_DEVICE void add_nt(float (&c)[M][N][4], const Tile<T, kDim>& a, int a_row, const Tile<T, kDim>& b) {
  static_assert(N % 2 == 0);
  constexpr int kRowBytes = Tile<T, kDim>::kRowBytes;
  const int lane = lane_index();
  const uint32_t a_at = shared_address(a.chunk(a_row + lane % 16, lane / 16));
  const uint32_t b_at = shared_address(b.chunk(lane % 8 + lane / 16 * 8, lane / 8 % 2));
#pragma unroll
  for (int k = 0; k < kDim / 16; ++k) {
    uint32_t fa[M][4];
#pragma unroll
    for (int m = 0; m < M; ++m) load_matrices(fa[m], along(a_at, 2 * k) + 16 * m * kRowBytes);
#pragma unroll
    for (int n = 0; n < N; n += 2) {
      uint32_t fb[4];
      load_matrices(fb, along(b_at, 2 * k) + 8 * n * kRowBytes);
#pragma unroll
      for (int m = 0; m < M; ++m) {
        multiply_add(c[m][n], fa[m], fb, T{});
        multiply_add(c[m][n + 1], fa[m], fb + 2, T{});
      }
    }
  }
}

template <int kDim, int M, int N>
MASKATTN_DEVICE void add_nt(float (&c)[M][N][4], const Tile<float, kDim>& a, int a_row,
                            const Tile<float, kDim>& b) {
  constexpr int kRowBytes = Tile<float, kDim>::kRowBytes;
  const int lane = lane_index(), column = 2 * (lane % 4);
  const uint32_t a_at = shared_address(a.chunk(a_row + lane / 4, 0));
  const uint32_t b_at[2] = {shared_address(b.chunk(column, 0)), shared_address(b.chunk(column + 1, 0))};
  const auto dot = [](float sum, const float4& x, const float4& y) {
    return x.x * y.x + (x.y * y.y + (x.z * y.z + (x.w * y.w + sum)));
  };
#pragma unroll 2
  for (int k = 0; k < kDim / 4; ++k) {
    float4 x[M][2];
#pragma unroll
    for (int m = 0; m < M; ++m)
#pragma unroll
      for (int half = 0; half < 2; ++half)
        x[m][half] = load_float4(along(a_at, k) + (16 * m + 8 * half) * kRowBytes);
#pragma unroll
    for (int n = 0; n < N; ++n)
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const float4 y = load_float4(along(b_at[j], k) + 8 * n * kRowBytes);
#pragma unroll
        for (int m = 0; m < M; ++m)
#pragma unroll
          for (int half = 0; half < 2; ++half) c[m][n][2 * half + j] = dot(c[m][n][2 * half + j], x[m][half], y);
      }
  }
}

// ---- c += P B: P (16 M x 8 N) in registers, rows [0, 8 N) of tile b ---------------------------------------
template <typename T, int kDim, int M, int N>
MASKATTN_DEVICE void add_nn(float (&c)[M][kDim / 8][4], const float (&p)[M][N][4], const Tile<T, kDim>& b) {
  static_assert(N % 2 == 0);
  const int lane = lane_index();
  const uint32_t b_at = shared_address(b.chunk(lane % 16, lane / 16));
#pragma unroll
  for (int k = 0; k < N; k += 2) {
    uint32_t fa[M][4];
#pragma unroll
    for (int m = 0; m < M; ++m)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float* pair = p[m][k + i / 2] + i % 2 * 2;
        fa[m][i] = pack(pair[0], pair[1], T{});
      }
#pragma unroll
    for (int n = 0; n < kDim / 8; n += 2) {
      uint32_t fb[4];
      load_matrices_transposed(fb, along(b_at, n) + 8 * k * Tile<T, kDim>::kRowBytes);
#pragma unroll
      for (int m = 0; m < M; ++m) {
        multiply_add(c[m][n], fa[m], fb, T{});
        multiply_add(c[m][n + 1], fa[m], fb + 2, T{});
      }
    }
  }
}

template <int kDim, int M, int N>
MASKATTN_DEVICE void add_nn(float (&c)[M][kDim / 8][4], const float (&p)[M][N][4], const Tile<float, kDim>& b) {
  const int lane = lane_index(), quad = lane - lane % 4;
  const uint32_t b_at = shared_address(b.at(0, 2 * (lane % 4)));
#pragma unroll
  for (int k = 0; k < 8 * N; ++k) {
    float x[M][2];
#pragma unroll
    for (int m = 0; m < M; ++m)
#pragma unroll
      for (int half = 0; half < 2; ++half) x[m][half] = shuffle(p[m][k / 8][2 * half + k % 2], quad + k % 8 / 2);
#pragma unroll
    for (int n = 0; n < kDim / 8; ++n) {
      const float2 y = load_float2(along(b_at, (2 * n) ^ (k % 8)) + k * Tile<float, kDim>::kRowBytes);
#pragma unroll
      for (int m = 0; m < M; ++m)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          c[m][n][2 * half] += x[m][half] * y.x;
          c[m][n][2 * half + 1] += x[m][half] * y.y;
        }
    }
  }
}

}  // namespace maskattn
