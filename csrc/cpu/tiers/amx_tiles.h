// SPDX-License-Identifier: BSD-3-Clause
//
// AMX tiles of bf16 and the one product behind every step of the AMX kernels. A tile is 1 KiB: 16 rows of 32
// bf16 (or 16 fp32). TDPBF16PS computes C[16][16] += A[16][32] * B[32][16], with B's rows interleaved in pairs.
//
// From rows of bf16 gathered as A tiles, two moves make every other operand:
//   transpose a tile's 32-bit words          rows -> B operand of  A * rows^T
//   interleave neighbouring rows ("VNNI")    rows -> B operand of  A * rows
//   both                                     rows -> A operand of  rows^T * B
// so nothing is transposed inside the loops.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "../engine.h"
#include "../integers.h"
#include "bf16.h"
#include "gemm.h"

namespace maskattn {
namespace {

constexpr int64_t kTile = 512;  // bf16 elements of a tile

// The tile registers' shapes belong to the thread; other libraries set them too, so each task sets its own.
class TileScope {
 public:
  TileScope() {
    alignas(64) uint8_t config[64] = {};
    config[0] = 1;  // palette
    for (int t = 0; t < 8; ++t) {
      config[16 + 2 * t] = 64;  // bytes of a row
      config[48 + t] = 16;      // rows
    }
    _tile_loadconfig(config);
  }
  ~TileScope() { _tile_release(); }
  TileScope(const TileScope&) = delete;
  TileScope& operator=(const TileScope&) = delete;
};

// One matrix operand: its first tile and the distances, in elements, of neighbouring tiles along the rows (of A)
// or columns (of B) of the product, and along the dimension that is summed over.
struct Tiles {
  const uint16_t* data;
  int64_t outer, depth;

  Tiles at(int64_t tile) const { return {data + tile * outer, outer, depth}; }
};

// C (fp32, 32 x 32 of a matrix with rows of c_row floats) (+)= A * B over k_tiles: a 2 x 2 block of accumulators
// needs one tile load for each product.
template <bool kAccumulate>
inline void tile_block(int64_t k_tiles, const Tiles& a, const Tiles& b, float* c, int64_t c_row) {
  const int64_t c_bytes = c_row * 4;
  float* lower = c + 16 * c_row;
  if constexpr (kAccumulate) {
    _tile_loadd(0, c, c_bytes);
    _tile_loadd(1, c + 16, c_bytes);
    _tile_loadd(2, lower, c_bytes);
    _tile_loadd(3, lower + 16, c_bytes);
  } else {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
  const uint16_t *at = a.data, *bt = b.data;
  for (int64_t k = 0; k < k_tiles; ++k, at += a.depth, bt += b.depth) {
    _tile_loadd(4, at, 64);
    _tile_loadd(6, bt, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(7, bt + b.outer, 64);
    _tile_dpbf16ps(1, 4, 7);
    _tile_loadd(5, at + a.outer, 64);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  _tile_stored(0, c, c_bytes);
  _tile_stored(1, c + 16, c_bytes);
  _tile_stored(2, lower, c_bytes);
  _tile_stored(3, lower + 16, c_bytes);
}

// The whole product; m_tiles and n_tiles are even.
template <bool kAccumulate>
inline void tile_gemm(int64_t m_tiles, int64_t n_tiles, int64_t k_tiles, const Tiles& a, const Tiles& b, float* c,
                      int64_t c_row) {
  for (int64_t n = 0; n < n_tiles; n += 2)
    for (int64_t m = 0; m < m_tiles; m += 2)
      tile_block<kAccumulate>(k_tiles, a.at(m), b.at(n), c + m * 16 * c_row + n * 16, c_row);
}

// Selected rows [begin, begin + count) as A tiles (row tile, depth tile), zeros up to `padded` rows.
inline void gather_tiles(const Slice& src, const TokenList& tokens, int64_t begin, int64_t count, int64_t padded,
                         int head_dim, int64_t depth_tiles, uint16_t* tiles) {
  for (int64_t i = 0; i < padded; ++i) {
    uint16_t* dst = tiles + (i / 16 * depth_tiles) * kTile + i % 16 * 32;
    for (int64_t c = 0; c < depth_tiles; ++c) {
      const int64_t left = i < count ? head_dim - c * 32 : 0;
      const void* at = left > 0 ? src.row(tokens[begin + i]) + c * 64 : nullptr;
      _mm512_store_si512(dst + c * kTile, load_bf16(at, left));
    }
  }
}

// Transposes the 16 x 16 words of each tile.
inline void transpose_tiles(int64_t tiles, const uint16_t* src, uint16_t* dst) {
  for (int64_t t = 0; t < tiles; ++t)
    transpose_tile(reinterpret_cast<const float*>(src + t * kTile), 16, reinterpret_cast<float*>(dst + t * kTile),
                   16);
}

// A tiles (row tile, depth tile) -> pair-interleaved tiles (row chunk of 32, column tile of 16).
inline void interleave_tiles(int64_t rows, int64_t depth_tiles, const uint16_t* src, uint16_t* dst) {
  for (int64_t i = 0; i < rows; i += 2)
    for (int64_t c = 0; c < depth_tiles; ++c)
      for (int64_t half = 0; half < 2; ++half) {
        const uint16_t* even = src + (i / 16 * depth_tiles + c) * kTile + i % 16 * 32 + half * 16;
        uint16_t* out = dst + (i / 32 * 2 * depth_tiles + 2 * c + half) * kTile + i % 32 / 2 * 32;
        _mm512_store_si512(out, interleave(_mm256_load_si256(reinterpret_cast<const __m256i*>(even)),
                                           _mm256_load_si256(reinterpret_cast<const __m256i*>(even + 32))));
      }
}

}  // namespace
}  // namespace maskattn
