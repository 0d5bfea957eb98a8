// SPDX-License-Identifier: BSD-3-Clause
//
// Backward pass, without atomics and with the same additions in the same order for any number of threads.
//
// A key group is one (b, h_kv) with the query heads that share it. Its selected keys are cut into chunks, and a
// run of its query blocks is taken at a time:
//   1. per query block: gather and pack Q and dO, delta = rowsum(dout * out) - dlse
//   2. per key chunk: the five products against all those query blocks; dK, dV and dbias stay with the chunk,
//      dQ becomes one partial sum per chunk
//   3. per query block: add the partial sums in chunk order, scatter dQ
// With many groups a thread does whole groups, and a run is as long as its cache is large. With few, threads share
// every step of all groups, and a run keeps the partial sums within kSharedBytes. So memory is O(N D) at any
// length. Chunks and blocks depend on the selection only.
#include <algorithm>
#include <bit>
#include <cmath>
#include <vector>

#include "schedule.h"

namespace maskattn {
namespace {

constexpr int64_t kSharedBytes = 8 << 20;
constexpr int64_t kOwnBytes = 512 << 10;       // a quarter of a 2 MiB second-level cache
constexpr int64_t kChunkCacheBytes = 1 << 20;  // K, V, dK, dV of a chunk: half of it
constexpr int64_t kChunkStep = 32;             // granularity of chunks

struct Chunk {
  int64_t group, begin, end;
  int64_t grads_at, grad_floats, dbias_floats;  // its dK and dV, then its dbias, in the group's gradients
};

struct Group {
  int64_t b, h_kv;
  TokenList keys;
  std::vector<QueryBlock> blocks;  // of all query heads that share this key head
  int64_t first_chunk, end_chunk;
  int64_t grads_at, grad_floats;  // of all its chunks, among all groups
};

// A chunk reads every packed query again and writes a dQ of its own, too much work for short chunks; long ones
// leave cores idle. With chunks of 5 sqrt(keys), both their length and their number grow with the problem; at
// least two of them keep a second thread busy.
int64_t chunk_limit(int head_dim, int64_t total_keys) {
  const int64_t cached = kChunkCacheBytes / (16 * round_up(head_dim, 16));
  const auto balanced = static_cast<int64_t>(5.0 * std::sqrt(static_cast<double>(total_keys)));
  return std::min(round_up(std::clamp<int64_t>(balanced, 2 * kChunkStep, cached), kChunkStep),
                  std::max<int64_t>(16, round_up(ceil_div(total_keys, 2), 8)));
}

// Chunks of equal length, in numbers that 2, 4 or 8 threads share evenly.
int64_t chunk_count(int64_t keys, int64_t limit) {
  const auto parts = static_cast<uint64_t>(std::max<int64_t>(1, ceil_div(keys, limit)));
  return static_cast<int64_t>(parts <= 8 ? std::bit_ceil(parts) : round_up(parts, 8));
}

struct Backward {
  const BackwardParams& p;
  const Engine& engine;
  std::vector<Group> groups;
  std::vector<Chunk> chunks;  // group after group
  Load pairs;                 // of a selected query and a selected key
  int64_t longest_chunk = 0, most_blocks = 0, all_grad_floats = 0;
  int64_t dq_floats, pack_bytes;

  explicit Backward(const BackwardParams& params)
      : p(params),
        engine(choose_engine(params.dtype)),
        dq_floats(engine.dq_block_floats(params.head_dim)),
        pack_bytes(align64(engine.packed_queries_bytes(params.head_dim))) {
    const int64_t heads_per_group = p.heads_kv == 0 ? 1 : p.heads_q / p.heads_kv;
    int64_t total_keys = 0;
    for (int64_t i = 0; i < p.batch * p.heads_kv; ++i) {
      Group g{i / p.heads_kv, i % p.heads_kv, {}, {}, 0, 0, 0, 0};
      g.keys = token_list(p.keys, g.b, g.h_kv, p.seqlen_k);
      total_keys += g.keys.count;
      int64_t queries = 0;
      for (int64_t head = g.h_kv * heads_per_group; head < (g.h_kv + 1) * heads_per_group; ++head) {
        const int64_t count = token_list(p.queries, g.b, head, p.seqlen_q).count;
        queries += count;
        for_each_block(count, engine.backward_queries, engine.query_step,
                       [&](int64_t begin, int64_t end) { g.blocks.push_back({head, begin, end}); });
      }
      pairs.add(queries * g.keys.count);
      most_blocks = std::max<int64_t>(most_blocks, std::ssize(g.blocks));
      groups.push_back(std::move(g));
    }
    const int64_t limit = chunk_limit(p.head_dim, total_keys);
    for (Group& g : groups) {
      const int64_t length =
          std::max<int64_t>(8, round_up(ceil_div(g.keys.count, chunk_count(g.keys.count, limit)), 8));
      longest_chunk = std::max(longest_chunk, length);
      g.first_chunk = std::ssize(chunks);
      g.grads_at = all_grad_floats;
      for (int64_t begin = 0; begin == 0 || begin < g.keys.count; begin += length) {
        const int64_t end = std::min(begin + length, g.keys.count),
                      floats = engine.key_grad_floats(p.head_dim, end - begin);
        chunks.push_back(
            {&g - groups.data(), begin, end, g.grad_floats, floats, round_up(end - begin, kChunkStep)});
        g.grad_floats += chunks.back().grad_floats + chunks.back().dbias_floats;
      }
      g.end_chunk = std::ssize(chunks);
      all_grad_floats += g.grad_floats;
    }
  }

  int64_t work() const { return (5 * pairs.total + p.batch * p.heads_kv * p.seqlen_k) * p.head_dim; }

  void pack(const Group& g, const QueryBlock& q, void* packed) const {
    engine.pack_queries({p.dtype, p.head_dim, p.scale, slice(p.q, p.dtype, g.b, q.head),
                         slice(p.out, p.dtype, g.b, q.head), slice(p.dout, p.dtype, g.b, q.head),
                         row(p.lse, g.b, q.head), row(p.dlse, g.b, q.head), p.dlse.stride_n,
                         token_list(p.queries, g.b, q.head, p.seqlen_q), q.begin, q.end, packed});
  }

  // One chunk against blocks [first, first + count) of its group; `grads` are those of the group.
  void multiply(const Chunk& c, int64_t first, int64_t count, const char* packed, float* grads, float* partial,
                void* scratch) const {
    const Group& g = groups[c.group];
    float *key_grads = grads + c.grads_at, *dbias = key_grads + c.grad_floats;
    if (first == 0) std::memset(key_grads, 0, sizeof(float) * (c.grad_floats + c.dbias_floats));
    if (count > 0)
      engine.key_chunk(
          {p.dtype, p.head_dim, p.scale, slice(p.k, p.dtype, g.b, g.h_kv), slice(p.v, p.dtype, g.b, g.h_kv),
           row(p.key_bias, g.b, g.h_kv), p.key_bias.stride_n, g.keys, c.begin, c.end, packed, pack_bytes,
           &g.blocks[first], count, key_grads, p.key_bias.data ? dbias : nullptr, partial},
          scratch);
    if (first + count < std::ssize(g.blocks)) return;
    engine.store_key_grads({p.dtype, p.head_dim, p.scale, slice(p.dk, p.dtype, g.b, g.h_kv),
                            slice(p.dv, p.dtype, g.b, g.h_kv), g.keys, c.begin, c.end, key_grads},
                           scratch);
    store_dbias(g, c, dbias);
  }

  void store_dbias(const Group& g, const Chunk& c, const float* src) const {
    float* dst = row(p.dbias, g.b, g.h_kv);
    if (dst == nullptr) return;
    for (int64_t i = c.begin; i < c.end; ++i) {
      for (int64_t n = g.keys.gap_begin(i); n < g.keys[i]; ++n) dst[n] = 0.0f;
      dst[g.keys[i]] = src[i - c.begin];
    }
    if (c.end == g.keys.count)
      for (int64_t n = g.keys.gap_begin(c.end); n < g.keys.seqlen; ++n) dst[n] = 0.0f;
  }

  // The partial sums of one block lie `stride` floats apart.
  void reduce(const Group& g, const QueryBlock& q, const float* partial, int64_t stride, void* scratch) const {
    engine.reduce_dq({p.dtype, p.head_dim, p.scale, slice(p.dq, p.dtype, g.b, q.head),
                      token_list(p.queries, g.b, q.head, p.seqlen_q), q.begin, q.end, partial,
                      g.end_chunk - g.first_chunk, stride},
                     scratch);
  }

  int64_t scratch_bytes() const {
    return align64(std::max(engine.chunk_scratch_bytes(p.head_dim, longest_chunk), 2 * dq_floats * 4));
  }

  void run_whole_groups(const ThreadPool& pool) const {
    int64_t most_chunks = 0, grad_floats = 0;
    for (const Group& g : groups) {
      most_chunks = std::max(most_chunks, g.end_chunk - g.first_chunk);
      grad_floats = std::max(grad_floats, g.grad_floats);
    }
    const int64_t run = run_length(kOwnBytes, most_chunks, 1);
    const int64_t packed_at = scratch_bytes(), partial_at = packed_at + run * pack_bytes,
                  grads_at = partial_at + align64(most_chunks * run * dq_floats * 4);
    run_tasks(pool, std::ssize(groups), work(), grads_at + grad_floats * 4, [&](int64_t i, char* scratch) {
      const Group& g = groups[i];
      char* packed = scratch + packed_at;
      auto *partial = reinterpret_cast<float*>(scratch + partial_at),
           *grads = reinterpret_cast<float*>(scratch + grads_at);
      for (int64_t first = 0; first == 0 || first < std::ssize(g.blocks); first += run) {
        const int64_t count = std::min(run, std::ssize(g.blocks) - first);
        for (int64_t j = 0; j < count; ++j) pack(g, g.blocks[first + j], packed + j * pack_bytes);
        for (int64_t c = g.first_chunk; c < g.end_chunk; ++c)
          multiply(chunks[c], first, count, packed, grads, partial + (c - g.first_chunk) * run * dq_floats,
                   scratch);
        for (int64_t j = 0; j < count; ++j)
          reduce(g, g.blocks[first + j], partial + j * dq_floats, run * dq_floats, scratch);
      }
    });
  }

  void run_shared_groups(const ThreadPool& pool) const {
    const int64_t run = run_length(kSharedBytes, std::ssize(chunks), std::ssize(groups));
    const Workspace grads(all_grad_floats * 4), packed(std::ssize(groups) * run * pack_bytes);
    const Workspace partial(std::ssize(chunks) * run * dq_floats * 4);
    const auto partial_block = [&](int64_t chunk, int64_t j) {
      return reinterpret_cast<float*>(partial.at(0)) + (chunk * run + j) * dq_floats;
    };
    for (int64_t first = 0; first == 0 || first < most_blocks; first += run) {
      const int64_t in_run = std::min(run, most_blocks - first), tasks = std::ssize(groups) * in_run;
      const int64_t values = tasks * engine.backward_queries * p.head_dim;
      const auto for_blocks = [&](int64_t scratch, const auto& visit) {
        run_tasks(pool, tasks, 4 * values, scratch, [&](int64_t task, char* own) {
          const int64_t g = task / in_run, j = task % in_run;
          if (first + j < std::ssize(groups[g].blocks)) visit(g, j, groups[g].blocks[first + j], own);
        });
      };
      for_blocks(0, [&](int64_t g, int64_t j, const QueryBlock& q, char*) {
        pack(groups[g], q, packed.at((g * run + j) * pack_bytes));
      });
      run_tasks(pool, std::ssize(chunks), work(), scratch_bytes(), [&](int64_t c, char* scratch) {
        const Group& g = groups[chunks[c].group];
        if (first > 0 && first >= std::ssize(g.blocks)) return;
        multiply(chunks[c], first, std::min(in_run, std::ssize(g.blocks) - first),
                 packed.at(chunks[c].group * run * pack_bytes), reinterpret_cast<float*>(grads.at(g.grads_at * 4)),
                 partial_block(c, 0), scratch);
      });
      for_blocks(scratch_bytes(), [&](int64_t g, int64_t j, const QueryBlock& q, char* scratch) {
        reduce(groups[g], q, partial_block(groups[g].first_chunk, j), run * dq_floats, scratch);
      });
    }
  }

  // Blocks of each group that are taken at a time, so that they and their partial sums fill no more than `bytes`.
  int64_t run_length(int64_t bytes, int64_t with_chunks, int64_t with_groups) const {
    const int64_t of_block = std::max<int64_t>(1, with_chunks * dq_floats * 4 + with_groups * pack_bytes);
    return std::clamp<int64_t>(bytes / of_block, 1, std::max<int64_t>(1, most_blocks));
  }
};

}  // namespace

void launch_cpu_bwd(const BackwardParams& given, const ThreadPool& pool) {
  BackwardParams p = given;
  check_selection(p.queries, p.batch, p.heads_q, p.seqlen_q, "query_mask");
  check_selection(p.keys, p.batch, p.heads_kv, p.seqlen_k, "key_mask");
  if (p.seqlen_q == 0 && p.seqlen_k == 0) return;
  const RelativeBiases biases(p, pool);
  const Backward backward(p);
  if (backward.groups.empty()) return;
  if (backward.pairs.even_over(pool.threads)) {
    backward.run_whole_groups(pool);
  } else {
    backward.run_shared_groups(pool);
  }
}

}  // namespace maskattn
