// SPDX-License-Identifier: BSD-3-Clause
//
// Tiles in shared memory, and the two products that every kernel here is made of. A warp owns 16 * M rows of its
// results, which lie in registers as the tensor cores leave them: accumulator c[m][n] is rows 16 m to 16 m + 15,
// columns 8 n to 8 n + 7, of which a lane holds two neighbours in row lane / 4 (c[m][n][0], [1]) and two in the row 8
// below ([2], [3]).
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

// Rows of kDim numbers, their 16-byte chunks permuted (by an exclusive or with the row) so that the same chunk of 8
// successive rows lies in 8 different sets of banks.
template <typename T, int kDim>
struct Tile {
  static constexpr int kRowBytes = kDim * static_cast<int>(sizeof(T));
  static constexpr int kChunks = kRowBytes / 16;
  static constexpr int kPerChunk = 16 / static_cast<int>(sizeof(T));

  char* data;

  MASKATTN_DEVICE char* chunk(int row, int chunk) const {
    const int turn = kChunks >= 8 ? row % 8 : row / 2 % 4;  // two rows of 4 chunks share the 128 bytes of all banks
    return data + row * kRowBytes + (chunk ^ turn) * 16;
  }

  MASKATTN_DEVICE T* at(int row, int column) const {
    return reinterpret_cast<T*>(chunk(row, column / kPerChunk)) + column % kPerChunk;
  }
};

// One (b, h) of a (B, H, N, D) tensor.
struct Rows {
  char* data;
  int64_t row_bytes;
  int head_dim;
  bool aligned;  // rows begin at multiples of 16 bytes and are as long: chunks can be moved as a whole

  MASKATTN_DEVICE char* row(int token) const { return data + token * row_bytes; }
};

template <typename T>
MASKATTN_DEVICE Rows rows_of(const TensorView& t, int64_t b, int64_t h, int head_dim, bool aligned) {
  return {static_cast<char*>(t.data) + (b * t.stride_b + h * t.stride_h) * static_cast<int64_t>(sizeof(T)),
          t.stride_n * static_cast<int64_t>(sizeof(T)), head_dim, aligned};
}

template <typename T>
union Chunk {
  uint4 bits;
  T numbers[16 / sizeof(T)];
};

// Starts to gather the rows of `tokens` (kRows ints in shared memory) into a tile; zeros for kNoToken and for
// columns from head_dim on. Done after wait_copies() and a barrier.
template <int kRows, int kThreads, typename T, int kDim>
MASKATTN_DEVICE void gather(const Tile<T, kDim>& tile, const Rows& from, const int* tokens) {
  using Tile = Tile<T, kDim>;
  static_assert(kRows * Tile::kChunks % kThreads == 0);
#pragma unroll 4
  for (int i = thread_index(); i < kRows * Tile::kChunks; i += kThreads) {
    const int row = i / Tile::kChunks, chunk = i % Tile::kChunks, column = chunk * Tile::kPerChunk;
    const int token = load_shared(tokens + row);
    if (from.aligned) {
      const bool exists = token != kNoToken && column < from.head_dim;
      copy_async(tile.chunk(row, chunk), exists ? from.row(token) + 16 * chunk : from.data, exists);
    } else {
      Chunk<T> c;
      c.bits = uint4{0, 0, 0, 0};
      if (token != kNoToken)
#pragma unroll
        for (int j = 0; j < Tile::kPerChunk; ++j)
          if (column + j < from.head_dim) c.numbers[j] = reinterpret_cast<const T*>(from.row(token))[column + j];
      store_shared(reinterpret_cast<uint4*>(tile.chunk(row, chunk)), c.bits);
    }
  }
}

template <typename T>
MASKATTN_DEVICE void store_chunk(const Rows& to, int token, int chunk, Chunk<T> c) {
  constexpr int kPerChunk = 16 / sizeof(T);
  const int column = chunk * kPerChunk;
  if (column >= to.head_dim) return;
  if (to.aligned) {
    *reinterpret_cast<uint4*>(to.row(token) + 16 * chunk) = c.bits;
  } else {
#pragma unroll
    for (int j = 0; j < kPerChunk; ++j)
      if (column + j < to.head_dim) reinterpret_cast<T*>(to.row(token))[column + j] = c.numbers[j];
  }
}

// Zeros in the row of one token, by a warp.
template <typename T>
MASKATTN_DEVICE void store_zeros(const Rows& to, int token) {
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

// Writes a warp's accumulators to the rows of `tokens`, by way of the warp's own rows of a tile that no other warp
// reads, so that whole chunks of a row are stored at a time. c is multiplied by `factor` of its row.
template <typename T, int kDim, int M, typename Factor>
MASKATTN_DEVICE void scatter(const float (&c)[M][kDim / 8][4], Factor factor, const Tile<T, kDim>& tile,
                             int first_row, const int* tokens, const Rows& to) {
  using Tile = Tile<T, kDim>;
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
#pragma unroll 4
  for (int i = lane_index(); i < 16 * M * Tile::kChunks; i += kWarpSize) {
    const int r = first_row + i / Tile::kChunks, chunk = i % Tile::kChunks;
    const int token = load_shared(tokens + r);
    Chunk<T> numbers;
    numbers.bits = load_shared(reinterpret_cast<const uint4*>(tile.chunk(r, chunk)));
    if (token != kNoToken) store_chunk(to, token, chunk, numbers);
  }
}

// ---- c += A B^T: rows [a_row, a_row + 16 M) of tile a, rows [0, 8 N) of tile b --------------------------------------
template <typename T, int kDim, int M, int N>
MASKATTN_DEVICE void add_nt(float (&c)[M][N][4], const Tile<T, kDim>& a, int a_row, const Tile<T, kDim>& b) {
  static_assert(N % 2 == 0);
  const int lane = lane_index();
#pragma unroll
  for (int k = 0; k < kDim / 16; ++k) {
    uint32_t fa[M][4];
#pragma unroll
    for (int m = 0; m < M; ++m) load_matrices(fa[m], a.chunk(a_row + 16 * m + lane % 16, 2 * k + lane / 16));
#pragma unroll
    for (int n = 0; n < N; n += 2) {
      uint32_t fb[4];
      load_matrices(fb, b.chunk(8 * n + lane % 8 + lane / 16 * 8, 2 * k + lane / 8 % 2));
#pragma unroll
      for (int m = 0; m < M; ++m) {
        multiply_add(c[m][n], fa[m], fb, T{});
        multiply_add(c[m][n + 1], fa[m], fb + 2, T{});
      }
    }
  }
}

template <int kDim, int M, int N>
MASKATTN_DEVICE void add_nt(float (&c)[M][N][4], const Tile<float, kDim>& a, int a_row, const Tile<float, kDim>& b) {
  const int row = a_row + lane_index() / 4, column = 2 * (lane_index() % 4);
  const auto chunk_of = [](const Tile<float, kDim>& tile, int r, int k) {
    return load_shared(reinterpret_cast<const float4*>(tile.chunk(r, k)));
  };
  const auto dot = [](float sum, const float4& x, const float4& y) {
    return x.x * y.x + (x.y * y.y + (x.z * y.z + (x.w * y.w + sum)));
  };
#pragma unroll 2
  for (int k = 0; k < kDim / 4; ++k) {
    float4 x[M][2];
#pragma unroll
    for (int m = 0; m < M; ++m)
#pragma unroll
      for (int half = 0; half < 2; ++half) x[m][half] = chunk_of(a, row + 16 * m + 8 * half, k);
#pragma unroll
    for (int n = 0; n < N; ++n)
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const float4 y = chunk_of(b, 8 * n + column + j, k);
#pragma unroll
        for (int m = 0; m < M; ++m)
#pragma unroll
          for (int half = 0; half < 2; ++half) c[m][n][2 * half + j] = dot(c[m][n][2 * half + j], x[m][half], y);
      }
  }
}

// ---- c += P B: P (16 M x 8 N) in registers, rows [0, 8 N) of tile b --------------------------------------------------
template <typename T, int kDim, int M, int N>
MASKATTN_DEVICE void add_nn(float (&c)[M][kDim / 8][4], const float (&p)[M][N][4], const Tile<T, kDim>& b) {
  static_assert(N % 2 == 0);
  const int lane = lane_index();
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
      load_matrices_transposed(fb, b.chunk(8 * k + lane % 16, n + lane / 16));
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
  const int lane = lane_index(), quad = lane - lane % 4, column = 2 * (lane % 4);
#pragma unroll
  for (int k = 0; k < 8 * N; ++k) {
    float x[M][2];
#pragma unroll
    for (int m = 0; m < M; ++m)
#pragma unroll
      for (int half = 0; half < 2; ++half) x[m][half] = shuffle(p[m][k / 8][2 * half + k % 2], quad + k % 8 / 2);
#pragma unroll
    for (int n = 0; n < kDim / 8; ++n) {
      const float2 y = load_shared(reinterpret_cast<const float2*>(b.at(k, 8 * n + column)));
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
