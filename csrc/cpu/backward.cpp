// SPDX-License-Identifier: BSD-3-Clause
//
// Backward pass, without atomics and with the same additions in the same order for any number of threads.
//
// The selected keys of every (b, h_kv) are cut into chunks, and a run of query blocks is taken at a time:
//   1. per query block: gather and pack Q and dO, delta = rowsum(dout * out) - dlse
//   2. per key chunk: the five products against all those query blocks; dK, dV and dbias stay with the chunk,
//      dQ becomes one partial sum per chunk
//   3. per query block: add the partial sums in chunk order, scatter dQ
// The length of a run keeps the partial sums within kPartialBytes, so memory is O(N D) at any length. Chunks
// depend on the selection only.
#include <algorithm>
#include <bit>
#include <cmath>
#include <vector>

#include "schedule.h"

namespace maskattn {
namespace {

constexpr int64_t kPartialBytes = 8 << 20;
constexpr int64_t kChunkCacheBytes = 1 << 20;  // K, V, dK, dV of a chunk: half of a 2 MiB second-level cache
constexpr int64_t kChunkStep = 32;             // granularity of chunks

struct Chunk {
  int64_t group;  // b * heads_kv + h_kv
  int64_t begin, end;
  int64_t grads_at;  // float offset of its dK, dV and dbias
};

struct Group {
  int64_t b, h;
  TokenList keys;
  std::vector<QueryBlock> blocks;  // of all query heads that share this key head
  int64_t first_chunk, chunks;
};

// A chunk rereads every packed query and writes a dQ of its own, which short chunks do not repay; long ones leave
// cores idle. With chunks of 5 sqrt(keys), both their length and their number grow with the problem.
int64_t chunk_limit(int head_dim, int64_t total_keys) {
  const int64_t cached = kChunkCacheBytes / (16 * round_up(head_dim, 16));
  const auto balanced = static_cast<int64_t>(5.0 * std::sqrt(static_cast<double>(total_keys)));
  return round_up(std::clamp<int64_t>(balanced, 2 * kChunkStep, cached), kChunkStep);
}

// Chunks of equal length, in numbers that 2, 4 or 8 threads share evenly.
int64_t chunk_count(int64_t keys, int64_t limit) {
  const auto parts = static_cast<uint64_t>(std::max<int64_t>(1, ceil_div(keys, limit)));
  return static_cast<int64_t>(parts <= 8 ? std::bit_ceil(parts) : round_up(parts, 8));
}

void store_dbias(const BackwardParams& p, const Group& g, const Chunk& chunk, const float* src) {
  float* dst = row(p.dbias, g.b, g.h);
  if (dst == nullptr) return;
  for (int64_t i = chunk.begin; i < chunk.end; ++i) {
    for (int64_t n = g.keys.gap_begin(i); n < g.keys[i]; ++n) dst[n] = 0.0f;
    dst[g.keys[i]] = src[i - chunk.begin];
  }
  if (chunk.end == g.keys.count)
    for (int64_t n = g.keys.gap_begin(chunk.end); n < g.keys.seqlen; ++n) dst[n] = 0.0f;
}

}  // namespace

void launch_cpu_bwd(const BackwardParams& p, const ThreadPool& pool) {
  const Engine& engine = choose_engine(p.dtype);
  check_selection(p.queries, p.batch, p.heads_q, p.seqlen_q, "query_mask");
  check_selection(p.keys, p.batch, p.heads_kv, p.seqlen_k, "key_mask");
  if (p.batch == 0 || p.heads_kv == 0) return;

  const int64_t heads_per_group = p.heads_q / p.heads_kv, groups = p.batch * p.heads_kv;
  std::vector<Group> group(groups);
  int64_t total_keys = 0, pairs = 0, most_blocks = 0;
  for (int64_t g = 0; g < groups; ++g) {
    const int64_t b = g / p.heads_kv, h = g % p.heads_kv;
    group[g] = {b, h, token_list(p.keys, b, h, p.seqlen_k), {}, 0, 0};
    total_keys += group[g].keys.count;
    for (int64_t head = h * heads_per_group; head < (h + 1) * heads_per_group; ++head) {
      const int64_t count = token_list(p.queries, b, head, p.seqlen_q).count;
      pairs += count * group[g].keys.count;
      for (int64_t begin = 0; begin == 0 || begin < count; begin += engine.backward_queries)
        group[g].blocks.push_back({head, begin, std::min(begin + engine.backward_queries, count)});
    }
    most_blocks = std::max(most_blocks, static_cast<int64_t>(group[g].blocks.size()));
  }

  std::vector<Chunk> chunks;
  const int64_t limit = chunk_limit(p.head_dim, total_keys);
  int64_t grad_floats = 0;
  for (int64_t g = 0; g < groups; ++g) {
    const int64_t count = group[g].keys.count;
    const int64_t length = std::max<int64_t>(8, round_up(ceil_div(count, chunk_count(count, limit)), 8));
    group[g].first_chunk = static_cast<int64_t>(chunks.size());
    for (int64_t begin = 0; begin == 0 || begin < count; begin += length) {
      const int64_t end = std::min(begin + length, count);
      chunks.push_back({g, begin, end, grad_floats});
      grad_floats += engine.key_grad_floats(p.head_dim, end - begin) + round_up(end - begin, kChunkStep);
    }
    group[g].chunks = static_cast<int64_t>(chunks.size()) - group[g].first_chunk;
  }

  const int64_t dq_floats = engine.dq_block_floats(p.head_dim);
  const int64_t pack_bytes = align64(engine.packed_queries_bytes(p.head_dim));
  const int64_t bytes_per_block = static_cast<int64_t>(chunks.size()) * dq_floats * 4 + groups * pack_bytes;
  const int64_t run = std::clamp<int64_t>(kPartialBytes / bytes_per_block, 1, std::max<int64_t>(1, most_blocks));

  const Workspace grads(grad_floats * 4);
  const Workspace packed(groups * run * pack_bytes);
  const Workspace partial(static_cast<int64_t>(chunks.size()) * run * dq_floats * 4);
  const auto packed_block = [&](int64_t g, int64_t i) { return packed.at((g * run + i) * pack_bytes); };
  const auto partial_block = [&](int64_t chunk, int64_t i) {
    return reinterpret_cast<float*>(partial.at(0)) + (chunk * run + i) * dq_floats;
  };

  for (int64_t first = 0; first == 0 || first < most_blocks; first += run) {
    const int64_t blocks = std::min(run, most_blocks - first);
    const bool last = first + blocks == most_blocks;

    const int64_t block_values = groups * blocks * engine.backward_queries * p.head_dim;
    run_tasks(pool, groups * blocks, 4 * block_values, 0, [&](int64_t task, void*) {
      const int64_t g = task / blocks, i = task % blocks;
      if (first + i >= static_cast<int64_t>(group[g].blocks.size())) return;
      const QueryBlock& q = group[g].blocks[first + i];
      const int64_t b = group[g].b;
      engine.pack_queries({p.dtype, p.head_dim, p.scale, slice(p.q, p.dtype, b, q.head),
                           slice(p.out, p.dtype, b, q.head), slice(p.dout, p.dtype, b, q.head),
                           row(p.lse, b, q.head), row(p.dlse, b, q.head), p.dlse.stride_n,
                           token_list(p.queries, b, q.head, p.seqlen_q), q.begin, q.end, packed_block(g, i)});
    });

    const int64_t chunk_scratch = engine.chunk_scratch_bytes(p.head_dim, limit);
    const int64_t chunk_work = (5 * pairs + p.batch * p.heads_kv * p.seqlen_k) * p.head_dim;
    run_tasks(pool, static_cast<int64_t>(chunks.size()), chunk_work, chunk_scratch, [&](int64_t c, void* scratch) {
      const Chunk& chunk = chunks[c];
      const Group& g = group[chunk.group];
      auto* key_grads = reinterpret_cast<float*>(grads.at(chunk.grads_at * 4));
      const int64_t floats = engine.key_grad_floats(p.head_dim, chunk.end - chunk.begin);
      float* dbias = key_grads + floats;
      if (first == 0)
        std::memset(key_grads, 0, sizeof(float) * (floats + round_up(chunk.end - chunk.begin, kChunkStep)));
      const Slice k = slice(p.k, p.dtype, g.b, g.h), v = slice(p.v, p.dtype, g.b, g.h);
      const int64_t own = std::min<int64_t>(blocks, static_cast<int64_t>(g.blocks.size()) - first);
      if (own > 0)
        engine.key_chunk(
            {p.dtype, p.head_dim, p.scale, k, v, row(p.key_bias, g.b, g.h), p.key_bias.stride_n, g.keys,
             chunk.begin, chunk.end, packed_block(chunk.group, 0), pack_bytes, &g.blocks[first], own, key_grads,
             p.key_bias.data ? dbias : nullptr, partial_block(c, 0)},
            scratch);
      if (!last) return;
      engine.store_key_grads({p.dtype, p.head_dim, p.scale, slice(p.dk, p.dtype, g.b, g.h),
                              slice(p.dv, p.dtype, g.b, g.h), g.keys, chunk.begin, chunk.end, key_grads},
                             scratch);
      store_dbias(p, g, chunk, dbias);
    });

    run_tasks(pool, groups * blocks, 4 * block_values, 2 * dq_floats * 4, [&](int64_t task, void* scratch) {
      const int64_t g = task / blocks, i = task % blocks;
      if (first + i >= static_cast<int64_t>(group[g].blocks.size())) return;
      const QueryBlock& q = group[g].blocks[first + i];
      const int64_t b = group[g].b;
      engine.reduce_dq({p.dtype, p.head_dim, p.scale, slice(p.dq, p.dtype, b, q.head),
                        token_list(p.queries, b, q.head, p.seqlen_q), q.begin, q.end,
                        partial_block(group[g].first_chunk, i), group[g].chunks, run * dq_floats},
                       scratch);
    });
  }
}

}  // namespace maskattn
