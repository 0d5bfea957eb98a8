// SPDX-License-Identifier: BSD-3-Clause
//
// Mask to ascending token indices and counts, and the check that indices given by a caller are such a list.
// One task per (b, h). Entries past the count hold `seqlen`: the row stays sorted, and using one of them as an
// index fails instead of reading a token that is not selected.
#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>

#include "schedule.h"

namespace maskattn {

void launch_cpu_select_tokens(const SelectParams& p, const ThreadPool& pool) {
  run_tasks(pool, p.batch * p.heads, p.batch * p.heads * p.seqlen, 0, [&](int64_t task, void*) {
    const int64_t b = task / p.heads, h = task % p.heads;
    // As bytes: a bool tensor that views other memory may hold any nonzero byte as True, which a C++ bool must
    // not.
    const auto* mask = reinterpret_cast<const uint8_t*>(p.mask) + b * p.stride_b + h * p.stride_h;
    int32_t* out = p.indices + task * p.seqlen;
    int32_t count = 0;
    // Storing always and advancing only on a hit keeps the loop free of a branch that random masks mispredict.
    for (int64_t n = 0; n < p.seqlen; ++n) {
      out[count] = static_cast<int32_t>(n);
      count += mask[n * p.stride_n] != 0;
    }
    for (int64_t n = count; n < p.seqlen; ++n) out[n] = static_cast<int32_t>(p.seqlen);
    p.counts[task] = count;
  });
}

// Throws, naming the first entry that breaks the order.
[[noreturn]] static void reject_indices(const TokenList& tokens, const char* what) {
  int64_t previous = -1, i = 0;
  while (tokens.indices[i] > previous && tokens.indices[i] < tokens.seqlen) previous = tokens.indices[i++];
  throw std::runtime_error(std::string(what) + ".indices: expected ascending tokens from 0 to " +
                           std::to_string(tokens.seqlen - 1) + ", got " + std::to_string(tokens.indices[i]) +
                           " at place " + std::to_string(i));
}

KeysInPlay::KeysInPlay(const ForwardParams& p, const ThreadPool& pool)
    : view(p.keys),
      memory_(p.key_bias.data == nullptr ? 0
                                         : p.batch * p.heads_kv * (p.seqlen_k + 1) * int64_t{sizeof(int32_t)}) {
  if (p.key_bias.data == nullptr || p.seqlen_k == 0) return;
  const int64_t lists = p.batch * p.heads_kv;
  auto* counts = reinterpret_cast<int32_t*>(memory_.at(0));
  int32_t* indices = counts + lists;
  run_tasks(pool, lists, lists * p.seqlen_k, 0, [&](int64_t task, void*) {
    const int64_t b = task / p.heads_kv, h = task % p.heads_kv;
    const TokenList keys = token_list(p.keys, b, h, p.seqlen_k);
    const float* bias = row(p.key_bias, b, h);
    int32_t* out = indices + task * p.seqlen_k;
    int32_t count = 0;
    for (int64_t i = 0; i < keys.count; ++i) {
      out[count] = static_cast<int32_t>(keys[i]);
      count += bias[keys[i] * p.key_bias.stride_n] != -INFINITY;
    }
    counts[task] = count;
  });
  view = {indices, p.heads_kv * p.seqlen_k, p.seqlen_k, counts, p.heads_kv, 1};
}

void check_selection(const SelectionView& s, int64_t batch, int64_t heads, int64_t seqlen, const char* what) {
  if (s.indices == nullptr) return;
  // A list that serves all is read once; a count alone that does, beside lists of their own, is one for each list.
  const int64_t own_batches = s.stride_b == 0 && s.count_stride_b == 0 ? std::min<int64_t>(batch, 1) : batch;
  const int64_t own_heads = s.stride_h == 0 && s.count_stride_h == 0 ? std::min<int64_t>(heads, 1) : heads;
  for (int64_t b = 0; b < own_batches; ++b)
    for (int64_t h = 0; h < own_heads; ++h) {
      const TokenList tokens = token_list(s, b, h, seqlen);
      if (tokens.count < 0 || tokens.count > seqlen)
        throw std::runtime_error(std::string(what) + ".counts: expected 0 to " + std::to_string(seqlen) +
                                 ", got " + std::to_string(tokens.count));
      bool ascending = true;
      for (int64_t i = 1; i < tokens.count; ++i) ascending &= tokens.indices[i - 1] < tokens.indices[i];
      if (tokens.count > 0) ascending &= tokens.indices[0] >= 0 && tokens.indices[tokens.count - 1] < seqlen;
      if (!ascending) reject_indices(tokens, what);
    }
}

}  // namespace maskattn
