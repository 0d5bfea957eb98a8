// SPDX-License-Identifier: BSD-3-Clause
//
// Forward pass of few queries over many keys. A task is a chunk of the keys of one group against all queries that
// share them, and leaves a partial result for each; then every head adds its partial results in the order of the
// chunks. Chunks depend on the selection only, so the result does not depend on the number of threads.
#include <algorithm>
#include <array>
#include <vector>

#include "schedule.h"

namespace maskattn {
namespace {

// Scores are summed in another order than in the backward pass. With fewer keys than this the rounding would show:
// the weight of a lone key would not be exactly 1 there.
constexpr int64_t kLeastKeys = 32;

// The queries of all heads that share a key head.
struct Group {
  int64_t b, h_kv;
  TokenList keys;
  std::array<const char*, kMostFewQueries> rows;
  int64_t queries;
  int64_t first_chunk, end_chunk;
  int64_t partial_at;  // floats
};

struct Chunk {
  int64_t group, begin, end;
};

// The selected queries of one head; `first` is the place of the first among those of the group.
struct Head {
  int64_t group, h, first;
};

}  // namespace

bool has_few_queries(const ForwardParams& p) {
  const int64_t heads_per_group = p.heads_q / p.heads_kv;
  for (int64_t b = 0; b < p.batch; ++b)
    for (int64_t h = 0, queries = 0; h < p.heads_q; ++h) {
      if (h % heads_per_group == 0) queries = 0;
      queries += token_list(p.queries, b, h, p.seqlen_q).count;
      if (queries > kMostFewQueries) return false;
      if (token_list(p.keys, b, h / heads_per_group, p.seqlen_k).count < kLeastKeys) return false;
    }
  return true;
}

void attend_few_queries(const ForwardParams& p, const ThreadPool& pool) {
  const Engine& engine = choose_engine(p.dtype);
  const int64_t heads_per_group = p.heads_q / p.heads_kv, row_floats = engine.few_row_floats(p.head_dim);
  std::vector<Group> groups;
  std::vector<Chunk> chunks;  // group after group
  std::vector<Head> heads;
  int64_t partial_floats = 0, pairs = 0, keys = 0;
  for (int64_t i = 0; i < p.batch * p.heads_kv; ++i) {
    Group g{i / p.heads_kv, i % p.heads_kv, {}, {}, 0, std::ssize(chunks), 0, partial_floats};
    g.keys = token_list(p.keys, g.b, g.h_kv, p.seqlen_k);
    for (int64_t h = g.h_kv * heads_per_group; h < (g.h_kv + 1) * heads_per_group; ++h) {
      const TokenList queries = token_list(p.queries, g.b, h, p.seqlen_q);
      heads.push_back({i, h, g.queries});
      for (int64_t j = 0; j < queries.count; ++j)
        g.rows[g.queries++] = slice(p.q, p.dtype, g.b, h).row(queries[j]);
    }
    for_each_block(g.keys.count, kFewKeys, 16,
                   [&](int64_t begin, int64_t end) { chunks.push_back({i, begin, end}); });
    g.end_chunk = std::ssize(chunks);
    partial_floats += (g.end_chunk - g.first_chunk) * g.queries * row_floats;
    pairs += g.queries * g.keys.count;
    keys += g.keys.count;
    groups.push_back(g);
  }

  const Workspace partial(partial_floats * 4);
  const auto partial_of = [&](const Group& g, int64_t chunk, int64_t query) {
    return reinterpret_cast<float*>(partial.at(0)) + g.partial_at +
           ((chunk - g.first_chunk) * g.queries + query) * row_floats;
  };
  const int64_t scratch_bytes = engine.few_scratch_bytes();
  const int64_t moved_bytes = 2 * keys * p.head_dim * element_size(p.dtype);
  run_tasks(pool, std::ssize(chunks), 2 * pairs * p.head_dim + moved_bytes, scratch_bytes,
            [&](int64_t i, char* scratch) {
              const Group& g = groups[chunks[i].group];
              if (g.queries == 0) return;
              engine.attend_few(
                  {p.dtype, p.head_dim, p.scale, g.rows.data(), g.queries, slice(p.k, p.dtype, g.b, g.h_kv),
                   slice(p.v, p.dtype, g.b, g.h_kv), row(p.key_bias, g.b, g.h_kv), p.key_bias.stride_n, g.keys,
                   chunks[i].begin, chunks[i].end, partial_of(g, i, 0)},
                  scratch);
            });
  const int64_t written_bytes = std::ssize(heads) * p.seqlen_q * p.head_dim * element_size(p.dtype);
  run_tasks(pool, std::ssize(heads), partial_floats + written_bytes, scratch_bytes, [&](int64_t i, char* scratch) {
    const Head& head = heads[i];
    const Group& g = groups[head.group];
    const TokenList queries = token_list(p.queries, g.b, head.h, p.seqlen_q);
    float* lse = row(p.lse, g.b, head.h);
    engine.combine_few(
        {p.dtype, p.head_dim, slice(p.out, p.dtype, g.b, head.h), lse, queries,
         partial_of(g, g.first_chunk, head.first), g.end_chunk - g.first_chunk, g.queries * row_floats},
        scratch);
    fill_lse_gaps(lse, queries, 0, queries.count);
  });
}

}  // namespace maskattn
