// SPDX-License-Identifier: BSD-3-Clause
//
// Forward pass: pack the selected keys of every (b, h_kv) once, then one task per block of selected queries of
// every (b, h_q). A block writes its own rows and the zeros between them, so `out` and `lse` are written
// exactly once and tokens that are not selected are never read.
#include <algorithm>
#include <cmath>
#include <vector>

#include "schedule.h"

namespace maskattn {
namespace {

// Selected keys or queries [begin, end) of one (b, h).
struct Task {
  int64_t b, h, begin, end;
};

// -inf for the tokens between the block's queries and, after the last one, for those that follow.
void fill_lse_gaps(float* lse, const TokenList& tokens, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i)
    for (int64_t n = tokens.gap_begin(i); n < tokens[i]; ++n) lse[n] = -INFINITY;
  if (end == tokens.count)
    for (int64_t n = tokens.gap_begin(end); n < tokens.seqlen; ++n) lse[n] = -INFINITY;
}

}  // namespace

void launch_cpu_fwd(const ForwardParams& p, const ThreadPool& pool) {
  const Engine& engine = choose_engine(p.dtype);
  check_selection(p.queries, p.batch, p.heads_q, p.seqlen_q, "query_mask");
  check_selection(p.keys, p.batch, p.heads_kv, p.seqlen_k, "key_mask");

  std::vector<Task> packs;
  std::vector<int64_t> packed_at;  // byte offset of each (b, h_kv)
  int64_t packed_bytes = 0, total_keys = 0;
  for (int64_t b = 0; b < p.batch; ++b)
    for (int64_t h = 0; h < p.heads_kv; ++h) {
      const int64_t count = token_list(p.keys, b, h, p.seqlen_k).count;
      packed_at.push_back(packed_bytes);
      total_keys += count;
      packed_bytes += align64(engine.packed_keys_bytes(p.head_dim, count));
      for (int64_t begin = 0; begin < count; begin += engine.pack_block)
        packs.push_back({b, h, begin, std::min(begin + engine.pack_block, count)});
    }
  const int64_t group = p.heads_kv == 0 ? 1 : p.heads_q / p.heads_kv;
  int64_t pairs = 0;  // selected (query, key) pairs
  std::vector<Task> blocks;
  for (int64_t b = 0; b < p.batch; ++b)
    for (int64_t h = 0; h < p.heads_q; ++h) {
      const int64_t count = token_list(p.queries, b, h, p.seqlen_q).count;
      pairs += count * token_list(p.keys, b, h / group, p.seqlen_k).count;
      for (int64_t begin = 0; begin == 0 || begin < count; begin += engine.forward_queries)
        blocks.push_back({b, h, begin, std::min(begin + engine.forward_queries, count)});
    }

  const Workspace packed(packed_bytes);
  const auto packed_keys = [&](int64_t b, int64_t h) {
    return PackedKeys{packed.at(packed_at[b * p.heads_kv + h]), token_list(p.keys, b, h, p.seqlen_k).count};
  };
  run_tasks(pool, static_cast<int64_t>(packs.size()), 2 * total_keys * p.head_dim, 0, [&](int64_t i, void*) {
    const Task& t = packs[i];
    engine.pack_keys({p.dtype, p.head_dim, slice(p.k, p.dtype, t.b, t.h), slice(p.v, p.dtype, t.b, t.h),
                      row(p.key_bias, t.b, t.h), p.key_bias.stride_n, token_list(p.keys, t.b, t.h, p.seqlen_k),
                      t.begin, t.end, packed_keys(t.b, t.h)});
  });

  const int64_t scratch_bytes = engine.forward_scratch_bytes(p.head_dim);
  const int64_t work = (2 * pairs + p.batch * p.heads_q * p.seqlen_q) * p.head_dim;
  run_tasks(pool, static_cast<int64_t>(blocks.size()), work, scratch_bytes, [&](int64_t i, void* scratch) {
    const Task& t = blocks[i];
    const TokenList queries = token_list(p.queries, t.b, t.h, p.seqlen_q);
    float* lse = row(p.lse, t.b, t.h);
    engine.forward_block(
        {p.dtype, p.head_dim, p.scale, slice(p.q, p.dtype, t.b, t.h), slice(p.out, p.dtype, t.b, t.h), lse,
         queries, t.begin, t.end, packed_keys(t.b, t.h / group)},
        scratch);
    fill_lse_gaps(lse, queries, t.begin, t.end);
  });
}

}  // namespace maskattn
