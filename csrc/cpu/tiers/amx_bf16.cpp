// SPDX-License-Identifier: BSD-3-Clause
//
// Masked attention of bf16 tensors on AMX tiles: bf16 products, fp32 sums, softmax in fp32.
//
// Scores lie as S[query][key]. Rows of a block are padded to 32 with zeros; a padded key has bias -inf and so
// weight 0. Forward, 64 queries at a time against blocks of 128 keys (FlashAttention): a row of scores fits 8
// vector registers, so scale, bias, maximum, exponential, sum and rounding to bf16 read it once. Backward as in
// vector_tier.cpp, with dK and dV kept transposed: dV^T[d][key] += dO^T[d][query] P[query][key], where P needs
// only its neighbouring rows interleaved.
#include "amx_tiles.h"
#include "few_queries.h"
#include "rows.h"

namespace maskattn {
namespace {

constexpr int64_t kForwardQ = 64;    // queries of a forward block
constexpr int64_t kBackwardQ = 128;  // more, because each pass over dK and dV loads and stores them whole
constexpr int64_t kStepQ = 32;       // queries whose scores are in flight at a time
constexpr int64_t kBlockK = 128;
constexpr int64_t kScoreRow = kBlockK + 16;  // floats; the padding keeps a column out of one cache set

int64_t padded(int head_dim) { return round_up(head_dim, 32); }

// ---- packed keys: blocks of kBlockK keys, the last one shorter ----

struct KeyBlock {
  uint16_t* k;   // transposed tiles (key tile, depth tile): B operand of Q K^T
  uint16_t* v;   // interleaved tiles (key chunk, column tile): B operand of P V
  float* bias;   // * log2(e); -inf for padding
  int64_t keys;  // a multiple of 32
};

int64_t packed_keys_bytes(int head_dim, int64_t keys) { return round_up(keys, 32) * (4 * padded(head_dim) + 4); }

KeyBlock key_block(const PackedKeys& packed, int head_dim, int64_t begin) {
  const int64_t total = round_up(packed.count, 32), width = padded(head_dim);
  auto* k = static_cast<uint16_t*>(packed.data);
  auto* bias = reinterpret_cast<float*>(k + 2 * total * width);
  return {k + begin * width, k + (total + begin) * width, bias + begin, min_of(total - begin, kBlockK)};
}

void pack_bias(const float* bias, int64_t stride, const TokenList& keys, int64_t begin, int64_t end,
               int64_t padded_end, float* dst) {
  for (int64_t j = begin; j < padded_end; ++j)
    *dst++ = j >= end ? -INFINITY : bias ? bias[keys[j] * stride] * kLog2e : 0.0f;
}

void pack_keys(const PackKeysBlock& block) {
  const int64_t depth_tiles = padded(block.head_dim) / 32, count = block.end - block.begin;
  const KeyBlock packed = key_block(block.packed, block.head_dim, block.begin);
  alignas(64) uint16_t rows[kBlockK * kMaxHeadDim];
  gather_tiles(block.k, block.keys, block.begin, count, packed.keys, block.head_dim, depth_tiles, rows);
  transpose_tiles(packed.keys / 16 * depth_tiles, rows, packed.k);
  gather_tiles(block.v, block.keys, block.begin, count, packed.keys, block.head_dim, depth_tiles, rows);
  interleave_tiles(packed.keys, depth_tiles, rows, packed.v);
  pack_bias(block.bias, block.bias_stride, block.keys, block.begin, block.end, block.begin + packed.keys,
            packed.bias);
}

// ---- forward ----

struct RowSoftmax {
  float max[kForwardQ];  // in use; moves only when exceeded by 2^kSlack, see OnlineSoftmax in vector_tier.cpp
  alignas(64) float sum[kForwardQ][16];
};

constexpr float kSlack = 8.0f;

float reference(float max) { return max == -INFINITY ? 0.0f : max; }

// One row of `2 * kPairs` score vectors -> bf16 weights in A tiles; rescales the row of O when its maximum moves.
template <int kPairs>
void softmax_row(const float* scores, const float* bias, float scale, float* max, float* sum, float* out,
                 int64_t width, uint16_t* weights) {
  __m512 x[2 * kPairs];
  const __m512 factor = _mm512_set1_ps(scale);
  __m512 row_max = _mm512_set1_ps(-INFINITY);
#pragma GCC unroll 8
  for (int v = 0; v < 2 * kPairs; ++v) {
    x[v] = _mm512_fmadd_ps(_mm512_loadu_ps(scores + v * 16), factor, _mm512_loadu_ps(bias + v * 16));
    row_max = _mm512_max_ps(x[v], row_max);  // a NaN in x loses
  }
  const float block_max = _mm512_reduce_max_ps(row_max);
  __m512 total = _mm512_load_ps(sum);
  if (block_max > *max + kSlack) {
    const Vec rescale = exp2(splat(*max - block_max));
    *max = block_max;
    total *= rescale;
    for (int64_t d = 0; d < width; d += kLanes) store(out + d, load(out + d) * rescale);
  }
  const __m512 ref = _mm512_set1_ps(reference(*max));
#pragma GCC unroll 4
  for (int v = 0; v < 2 * kPairs; v += 2) {
    const __m512 low = exp2(x[v] - ref), high = exp2(x[v + 1] - ref);
    total += low + high;
    _mm512_store_si512(weights + v / 2 * kTile, to_bf16(low, high));
  }
  _mm512_store_ps(sum, total);
}

void softmax_row(int64_t pairs, const float* scores, const float* bias, float scale, float* max, float* sum,
                 float* out, int64_t width, uint16_t* weights) {
  switch (pairs) {
    case 1:
      return softmax_row<1>(scores, bias, scale, max, sum, out, width, weights);
    case 2:
      return softmax_row<2>(scores, bias, scale, max, sum, out, width, weights);
    case 3:
      return softmax_row<3>(scores, bias, scale, max, sum, out, width, weights);
    default:
      return softmax_row<4>(scores, bias, scale, max, sum, out, width, weights);
  }
}

int64_t forward_scratch_bytes(int head_dim) {
  return kForwardQ * padded(head_dim) * (4 + 2) + 2 * kStepQ * kScoreRow * 4 + kStepQ * kBlockK * 2;
}

void forward_block(const ForwardBlock& block, void* scratch) {
  const TileScope tiles;
  const int64_t width = padded(block.head_dim), depth_tiles = width / 32;
  const int64_t count = block.end - block.begin, rows = round_up(count, kStepQ);
  auto* out = static_cast<float*>(scratch);                                // (kForwardQ, width)
  float* scores = out + kForwardQ * width;                                 // 2 x (kStepQ, kScoreRow)
  auto* q = reinterpret_cast<uint16_t*>(scores + 2 * kStepQ * kScoreRow);  // A tiles (query tile, depth tile)
  uint16_t* weights = q + kForwardQ * width;                               // A tiles (query tile, key chunk)
  const float scale = block.scale * kLog2e;

  gather_tiles(block.q, block.queries, block.begin, count, rows, block.head_dim, depth_tiles, q);
  RowSoftmax softmax;
  for (float& m : softmax.max) m = -INFINITY;
  std::memset(softmax.sum, 0, sizeof(softmax.sum));
  std::memset(out, 0, sizeof(float) * rows * width);

  // A step is 32 queries against a block of keys. While the vector units turn one step's scores into weights, the
  // tile unit makes the next step's scores: a block of 32 x 32 is issued before every 8 rows of softmax.
  const int64_t steps_q = rows / kStepQ, steps = ceil_div(block.keys.count, kBlockK) * steps_q;
  const auto keys_of = [&](int64_t t) { return key_block(block.keys, block.head_dim, t / steps_q * kBlockK); };
  const auto score_block = [&](int64_t t, int64_t chunk) {
    if (t >= steps) return;
    const KeyBlock keys = keys_of(t);
    if (chunk >= keys.keys / 32) return;
    const Tiles a{q + t % steps_q * kStepQ * width, depth_tiles * kTile, kTile};
    const Tiles b{keys.k, depth_tiles * kTile, kTile};
    tile_block<false>(depth_tiles, a, b.at(2 * chunk), scores + t % 2 * kStepQ * kScoreRow + 32 * chunk,
                      kScoreRow);
  };
  for (int64_t chunk = 0; chunk < kBlockK / 32; ++chunk) score_block(0, chunk);
  for (int64_t t = 0; t < steps; ++t) {
    const KeyBlock keys = keys_of(t);
    const int64_t chunks = keys.keys / 32, first = t % steps_q * kStepQ;
    for (int64_t i = 0; i < kStepQ; ++i) {
      if (i % 8 == 0) score_block(t + 1, i / 8);
      softmax_row(chunks, scores + (t % 2 * kStepQ + i) * kScoreRow, keys.bias, scale, &softmax.max[first + i],
                  softmax.sum[first + i], out + (first + i) * width, width,
                  weights + i / 16 * chunks * kTile + i % 16 * 32);
    }
    tile_gemm<true>(kStepQ / 16, 2 * depth_tiles, chunks, {weights, chunks * kTile, kTile},
                    {keys.v, kTile, 2 * depth_tiles * kTile}, out + first * width, width);
  }

  float inverse[kForwardQ];
  for (int64_t i = 0; i < count; ++i) {
    const float sum = sum_lanes(load(softmax.sum[i]));
    inverse[i] = inverse_sum(sum);
    block.lse[block.queries[block.begin + i]] =
        sum == 0.0f ? -INFINITY : reference(softmax.max[i]) * kLn2 + std::log(sum);
  }
  scatter_rows(
      out, width, count, [&](int64_t i) { return inverse[i]; }, block.dtype, block.head_dim, block.out,
      block.queries, block.begin);
}

// ---- backward ----

struct QueryTiles {
  uint16_t *q, *dout;     // A tiles (query tile, depth tile)
  uint16_t *qt, *dout_t;  // A tiles of the transpose: (query chunk, row tile of head_dim)
  float *lse, *delta;     // lse in log2 units; +inf where a query has no weight
  QueryTiles(void* data, int64_t width)
      : q(static_cast<uint16_t*>(data)),
        dout(q + kBackwardQ * width),
        qt(dout + kBackwardQ * width),
        dout_t(qt + kBackwardQ * width),
        lse(reinterpret_cast<float*>(dout_t + kBackwardQ * width)),
        delta(lse + kBackwardQ) {}
};

int64_t packed_queries_bytes(int head_dim) { return kBackwardQ * (8 * padded(head_dim) + 8); }

void pack_queries(const PackQueriesBlock& block) {
  const int64_t width = padded(block.head_dim), depth_tiles = width / 32;
  const int64_t count = block.end - block.begin, rows = round_up(count, 32);
  const QueryTiles packed(block.packed, width);
  alignas(64) uint16_t interleaved[kBackwardQ * kMaxHeadDim];
  const struct {
    const Slice& src;
    uint16_t *tiles, *transposed;
  } operands[] = {{block.q, packed.q, packed.qt}, {block.dout, packed.dout, packed.dout_t}};
  for (const auto& operand : operands) {
    gather_tiles(operand.src, block.queries, block.begin, count, rows, block.head_dim, depth_tiles, operand.tiles);
    interleave_tiles(rows, depth_tiles, operand.tiles, interleaved);
    transpose_tiles(rows / 16 * depth_tiles, interleaved, operand.transposed);
  }
  pack_lse_and_delta(block, rows, kLog2e, packed.lse, packed.delta);
}

// A chunk's own operands, by blocks of kBlockK keys.
struct ChunkKeys {
  uint16_t *k_t, *v_t;  // transposed tiles: B operands of Q K^T and dO V^T
  uint16_t* k;          // interleaved tiles: B operand of dS K
  float* bias;
  ChunkKeys(void* data, int64_t keys, int64_t width)
      : k_t(static_cast<uint16_t*>(data)),
        v_t(k_t + keys * width),
        k(v_t + keys * width),
        bias(reinterpret_cast<float*>(k + keys * width)) {}
};

int64_t chunk_scratch_bytes(int head_dim, int64_t keys) {
  return round_up(keys, 32) * (6 * padded(head_dim) + 4) + 4 * kStepQ * kScoreRow * 4 +
         3 * kBackwardQ * kBlockK * 2;
}

// dK^T and dV^T: for every block of kBlockK keys (width, kBlockK).
int64_t key_grad_floats(int head_dim, int64_t keys) { return 2 * padded(head_dim) * round_up(keys, kBlockK); }

// Two rows of scores and of dP -> P and dS: interleaved for dV and dK, dS also in rows for dQ.
void weight_rows(const float* scores, const float* dp, const float* bias, float scale, const float* lse,
                 const float* delta, int64_t chunks, uint16_t* p_pairs, uint16_t* ds_pairs, uint16_t* ds_rows,
                 float* dbias) {
  const __m512 factor = _mm512_set1_ps(scale);
  for (int64_t c = 0; c < chunks; ++c) {
    __m512 p[2][2], ds[2][2];  // (row, half)
#pragma GCC unroll 2
    for (int r = 0; r < 2; ++r)
#pragma GCC unroll 2
      for (int half = 0; half < 2; ++half) {
        const int64_t at = c * 32 + half * 16;
        const __m512 x = _mm512_fmadd_ps(_mm512_loadu_ps(scores + r * kScoreRow + at), factor,
                                         _mm512_loadu_ps(bias + at) - _mm512_set1_ps(lse[r]));
        p[r][half] = exp2(x);
        ds[r][half] = p[r][half] * (_mm512_loadu_ps(dp + r * kScoreRow + at) - _mm512_set1_ps(delta[r]));
      }
    __m512i p_bf16[2], ds_bf16[2];
#pragma GCC unroll 2
    for (int r = 0; r < 2; ++r) {
      p_bf16[r] = to_bf16(p[r][0], p[r][1]);
      ds_bf16[r] = to_bf16(ds[r][0], ds[r][1]);
      _mm512_store_si512(ds_rows + c * kTile + r * 32, ds_bf16[r]);
    }
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      const auto pick = [half](__m512i v) {
        return half ? _mm512_extracti64x4_epi64(v, 1) : _mm512_castsi512_si256(v);
      };
      _mm512_store_si512(p_pairs + (2 * c + half) * kTile, interleave(pick(p_bf16[0]), pick(p_bf16[1])));
      _mm512_store_si512(ds_pairs + (2 * c + half) * kTile, interleave(pick(ds_bf16[0]), pick(ds_bf16[1])));
      if (dbias != nullptr) {
        float* sum = dbias + c * 32 + half * 16;
        _mm512_storeu_ps(sum, _mm512_loadu_ps(sum) + (ds[0][half] + ds[1][half]));
      }
    }
  }
}

void key_chunk(const KeyChunk& chunk, void* scratch) {
  const TileScope tiles;
  const int64_t width = padded(chunk.head_dim), depth_tiles = width / 32;
  const int64_t total = chunk.end - chunk.begin, padded_keys = round_up(total, 32);
  const ChunkKeys keys(scratch, padded_keys, width);
  float* scores = keys.bias + padded_keys;                                   // 2 x (kStepQ, kScoreRow)
  float* dp = scores + 2 * kStepQ * kScoreRow;                               // 2 x (kStepQ, kScoreRow)
  auto* p_pairs = reinterpret_cast<uint16_t*>(dp + 2 * kStepQ * kScoreRow);  // B tiles (query chunk, key tile)
  uint16_t* ds_pairs = p_pairs + kBackwardQ * kBlockK;                       // the same
  uint16_t* ds_rows = ds_pairs + kBackwardQ * kBlockK;                       // A tiles (query tile, key chunk)
  const float scale = chunk.scale * kLog2e;

  alignas(64) uint16_t rows[kBlockK * kMaxHeadDim];
  for (int64_t begin = 0; begin < padded_keys; begin += kBlockK) {
    const int64_t n = min_of(padded_keys - begin, kBlockK);
    const int64_t valid = min_of(total - begin, n);
    gather_tiles(chunk.v, chunk.keys, chunk.begin + begin, valid, n, chunk.head_dim, depth_tiles, rows);
    transpose_tiles(n / 16 * depth_tiles, rows, keys.v_t + begin * width);
    gather_tiles(chunk.k, chunk.keys, chunk.begin + begin, valid, n, chunk.head_dim, depth_tiles, rows);
    transpose_tiles(n / 16 * depth_tiles, rows, keys.k_t + begin * width);
    interleave_tiles(n, depth_tiles, rows, keys.k + begin * width);
  }
  pack_bias(chunk.bias, chunk.bias_stride, chunk.keys, chunk.begin, chunk.end, chunk.begin + padded_keys,
            keys.bias);

  // Tiles stored (row tile, depth tile), summed over depth; and (row chunk, depth tile), summed over rows.
  const auto by_rows = [&](const uint16_t* t) { return Tiles{t, depth_tiles * kTile, kTile}; };
  const auto by_columns = [&](const uint16_t* t) { return Tiles{t, kTile, 2 * depth_tiles * kTile}; };
  float* dkt = chunk.key_grads;
  float* dvt = dkt + width * round_up(total, kBlockK);
  for (int64_t b = 0; b < chunk.block_count; ++b) {
    const QueryTiles queries(const_cast<char*>(chunk.packed_queries) + b * chunk.packed_stride, width);
    const int64_t query_rows = round_up(chunk.blocks[b].end - chunk.blocks[b].begin, 32);
    float* dq = chunk.dq_partial + b * kBackwardQ * width;
    if (total == 0) std::memset(dq, 0, sizeof(float) * query_rows * width);
    for (int64_t begin = 0; begin < padded_keys; begin += kBlockK) {
      const int64_t chunks = min_of(padded_keys - begin, kBlockK) / 32;
      // As in the forward pass, the next step's S and dP are issued between this step's rows.
      const auto score_block = [&](int64_t step, int64_t c) {
        if (step >= query_rows || c >= chunks) return;
        const int64_t at = step / kStepQ % 2 * kStepQ * kScoreRow + 32 * c;
        tile_block<false>(depth_tiles, by_rows(queries.q + step * width),
                          by_rows(keys.k_t + begin * width).at(2 * c), scores + at, kScoreRow);
        tile_block<false>(depth_tiles, by_rows(queries.dout + step * width),
                          by_rows(keys.v_t + begin * width).at(2 * c), dp + at, kScoreRow);
      };
      for (int64_t c = 0; c < chunks; ++c) score_block(0, c);
      for (int64_t step = 0; step < query_rows; step += kStepQ)
        for (int64_t i = 0; i < kStepQ; i += 2) {
          if (i % 8 == 0) score_block(step + kStepQ, i / 8);
          const int64_t at = (step / kStepQ % 2 * kStepQ + i) * kScoreRow;
          const int64_t pair = step / 32 * 2 * chunks * kTile + i / 2 * 32;
          weight_rows(scores + at, dp + at, keys.bias + begin, scale, queries.lse + step + i,
                      queries.delta + step + i, chunks, p_pairs + pair, ds_pairs + pair,
                      ds_rows + (step + i) / 16 * chunks * kTile + i % 16 * 32,
                      chunk.dbias ? chunk.dbias + begin : nullptr);
        }
      tile_gemm<true>(2 * depth_tiles, 2 * chunks, query_rows / 32, by_columns(queries.dout_t),
                      {p_pairs, kTile, 2 * chunks * kTile}, dvt + begin * width, kBlockK);
      tile_gemm<true>(2 * depth_tiles, 2 * chunks, query_rows / 32, by_columns(queries.qt),
                      {ds_pairs, kTile, 2 * chunks * kTile}, dkt + begin * width, kBlockK);
      const auto dq_gemm = begin == 0 ? tile_gemm<false> : tile_gemm<true>;
      dq_gemm(query_rows / 16, 2 * depth_tiles, chunks, {ds_rows, chunks * kTile, kTile},
              by_columns(keys.k + begin * width), dq, width);
    }
  }
}

void store_key_grads(const StoreKeyGrads& store_grads, void* scratch) {
  const int64_t width = padded(store_grads.head_dim), total = store_grads.end - store_grads.begin;
  float* rows = static_cast<float*>(scratch);  // (kBlockK, width)
  const float* transposed = store_grads.key_grads;
  const struct {
    const Slice& dst;
    float factor;
  } results[] = {{store_grads.dk, store_grads.scale}, {store_grads.dv, 1.0f}};
  for (const auto& result : results)
    for (int64_t begin = 0; begin == 0 || begin < total; begin += kBlockK, transposed += width * kBlockK) {
      const int64_t n = min_of(total - begin, kBlockK);
      transpose(width, round_up(n, 16), transposed, kBlockK, rows, width);
      scatter_rows(rows, width, n, times(result.factor), store_grads.dtype, store_grads.head_dim, result.dst,
                   store_grads.keys, store_grads.begin + begin);
    }
}

int64_t dq_block_floats(int head_dim) { return kBackwardQ * padded(head_dim); }

void reduce_dq(const ReduceDq& r, void* scratch) {
  const int64_t width = padded(r.head_dim), count = r.end - r.begin;
  auto* rows = static_cast<float*>(scratch);  // (kBackwardQ, width)
  for (int64_t at = 0; at < count * width; at += kLanes) {
    Vec total{};
    for (int64_t c = 0; c < r.partials; ++c) total += load(r.partial + c * r.partial_stride + at);
    store(rows + at, total);
  }
  scatter_rows(rows, width, count, times(r.scale), r.dtype, r.head_dim, r.dq, r.queries, r.begin);
}

}  // namespace
}  // namespace maskattn

#include "table.h"
