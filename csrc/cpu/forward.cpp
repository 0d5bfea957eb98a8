// SPDX-License-Identifier: BSD-3-Clause
//
// Forward pass. A key group is one (b, h_kv) with the query heads that share it: its selected keys are packed
// once, then every block of its selected queries is attended on its own. A block writes its own rows and the zeros
// between them, so `out` and `lse` are written exactly once and tokens that are not selected are never read.
//
// With many groups a thread does whole groups, and packed keys stay in its cache. With few, threads share each
// group, first its packing, then its blocks. The arithmetic is the same.
#include <algorithm>
#include <vector>

#include "schedule.h"

namespace maskattn {
namespace {

// Queries [begin, end) of the selected ones of head `h`, against the keys of `group`.
struct Block {
  int64_t group, h, begin, end;
};

// Keys [begin, end) of the selected ones of `group`.
struct Pack {
  int64_t group, begin, end;
};

struct Group {
  int64_t b, h_kv;
  TokenList keys;
  int64_t packed_bytes;
  int64_t first_pack, end_pack, first_block, end_block;
};

struct Forward {
  const ForwardParams& p;
  const Engine& engine;
  std::vector<Group> groups;
  std::vector<Pack> packs;    // group after group
  std::vector<Block> blocks;  // the same
  Load pairs;                 // of a selected query and a selected key

  explicit Forward(const ForwardParams& params) : p(params), engine(choose_engine(params.dtype)) {
    const int64_t heads_per_group = p.heads_kv == 0 ? 1 : p.heads_q / p.heads_kv;
    for (int64_t i = 0; i < p.batch * p.heads_kv; ++i) {
      Group g{i / p.heads_kv, i % p.heads_kv, {}, 0, std::ssize(packs), 0, std::ssize(blocks), 0};
      g.keys = token_list(p.keys, g.b, g.h_kv, p.seqlen_k);
      g.packed_bytes = align64(engine.packed_keys_bytes(p.head_dim, g.keys.count));
      for (int64_t begin = 0; begin < g.keys.count; begin += engine.pack_block)
        packs.push_back({i, begin, std::min(begin + engine.pack_block, g.keys.count)});
      int64_t queries = 0;
      for (int64_t h = g.h_kv * heads_per_group; h < (g.h_kv + 1) * heads_per_group; ++h) {
        const int64_t count = token_list(p.queries, g.b, h, p.seqlen_q).count;
        queries += count;
        for_each_block(count, engine.forward_queries, engine.query_step,
                       [&](int64_t begin, int64_t end) { blocks.push_back({i, h, begin, end}); });
      }
      g.end_pack = std::ssize(packs), g.end_block = std::ssize(blocks);
      groups.push_back(g);
      pairs.add(queries * g.keys.count);
    }
  }

  int64_t work() const { return (2 * pairs.total + p.batch * p.heads_q * p.seqlen_q) * p.head_dim; }

  void pack(const Pack& t, char* packed) const {
    const Group& g = groups[t.group];
    engine.pack_keys({p.dtype,
                      p.head_dim,
                      slice(p.k, p.dtype, g.b, g.h_kv),
                      slice(p.v, p.dtype, g.b, g.h_kv),
                      row(p.key_bias, g.b, g.h_kv),
                      p.key_bias.stride_n,
                      g.keys,
                      t.begin,
                      t.end,
                      {packed, g.keys.count}});
  }

  void attend(const Block& t, char* packed, void* scratch) const {
    const Group& g = groups[t.group];
    const TokenList queries = token_list(p.queries, g.b, t.h, p.seqlen_q);
    float* lse = row(p.lse, g.b, t.h);
    engine.forward_block({p.dtype,
                          p.head_dim,
                          p.scale,
                          slice(p.q, p.dtype, g.b, t.h),
                          slice(p.out, p.dtype, g.b, t.h),
                          lse,
                          queries,
                          t.begin,
                          t.end,
                          {packed, g.keys.count}},
                         scratch);
    fill_lse_gaps(lse, queries, t.begin, t.end);
  }

  void run_whole_groups(const ThreadPool& pool) const {
    int64_t packed_bytes = 0;
    for (const Group& g : groups) packed_bytes = std::max(packed_bytes, g.packed_bytes);
    const int64_t bytes = packed_bytes + engine.forward_scratch_bytes(p.head_dim);
    run_tasks(pool, std::ssize(groups), work(), bytes, [&](int64_t i, char* packed) {
      const Group& g = groups[i];
      for (int64_t j = g.first_pack; j < g.end_pack; ++j) pack(packs[j], packed);
      for (int64_t j = g.first_block; j < g.end_block; ++j) attend(blocks[j], packed, packed + packed_bytes);
    });
  }

  void run_shared_groups(const ThreadPool& pool) const {
    std::vector<int64_t> packed_at;
    int64_t packed_bytes = 0, keys = 0;
    for (const Group& g : groups) {
      packed_at.push_back(packed_bytes);
      packed_bytes += g.packed_bytes;
      keys += g.keys.count;
    }
    const Workspace packed(packed_bytes);
    const int64_t moved_bytes = 2 * keys * p.head_dim * element_size(p.dtype) * 2;
    run_tasks(pool, std::ssize(packs), moved_bytes, 0,
              [&](int64_t i, char*) { pack(packs[i], packed.at(packed_at[packs[i].group])); });
    run_tasks(
        pool, std::ssize(blocks), work(), engine.forward_scratch_bytes(p.head_dim),
        [&](int64_t i, char* scratch) { attend(blocks[i], packed.at(packed_at[blocks[i].group]), scratch); });
  }
};

}  // namespace

void launch_cpu_fwd(const ForwardParams& given, const ThreadPool& pool) {
  ForwardParams p = given;
  check_selection(p.queries, p.batch, p.heads_q, p.seqlen_q, "query_mask");
  check_selection(p.keys, p.batch, p.heads_kv, p.seqlen_k, "key_mask");
  if (p.heads_q == 0 || p.seqlen_q == 0) return;  // at once, however many images there are
  const RelativeBiases biases(p, pool);
  if (has_few_queries(p)) return attend_few_queries(p, pool);
  const Forward forward(p);
  if (forward.pairs.even_over(pool.threads)) {
    forward.run_whole_groups(pool);
  } else {
    forward.run_shared_groups(pool);
  }
}

}  // namespace maskattn
