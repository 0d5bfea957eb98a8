// SPDX-License-Identifier: BSD-3-Clause
//
// Mask to ascending token indices and counts, the check that indices given by a caller are such a list, and biases
// relative to the largest selected one.
// One task per (b, h). Entries past the count hold `seqlen`: the row stays sorted, and using one of them as an
// index fails instead of reading a token that is not selected.
#include <algorithm>
#include <cmath>
#include <limits>
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

RelativeBiases::RelativeBiases(ForwardParams& p, const ThreadPool& pool) {
  const RowView given = p.key_bias;
  if (given.data == nullptr || p.seqlen_k == 0) return;
  const SelectionView selected = p.keys;
  const bool one_batch = selected.stride_b == 0 && selected.count_stride_b == 0 && given.stride_b == 0;
  const bool one_head = selected.stride_h == 0 && selected.count_stride_h == 0 && given.stride_h == 0;
  const int64_t batches = one_batch ? std::min<int64_t>(p.batch, 1) : p.batch,
                heads = one_head ? std::min<int64_t>(p.heads_kv, 1) : p.heads_kv, lists = batches * heads;
  if (lists == 0) return;
  memory_.emplace(Workspace::bytes_of_rows(lists, 2 * p.seqlen_k + 1));
  auto* biases = reinterpret_cast<float*>(memory_->at(0));
  auto* indices = reinterpret_cast<int32_t*>(biases + lists * p.seqlen_k);
  int32_t* counts = indices + lists * p.seqlen_k;
  run_tasks(pool, lists, lists * p.seqlen_k, 0, [&](int64_t task, void*) {
    const int64_t b = task / heads, h = task % heads;
    const TokenList keys = token_list(selected, b, h, p.seqlen_k);
    const float* bias = row(given, b, h);
    float level = std::numeric_limits<float>::lowest();  // finite, as -inf - -inf would be NaN
    for (int64_t i = 0; i < keys.count; ++i) {
      const float value = bias[keys[i] * given.stride_n];
      level = value > level || std::isnan(value) ? value : level;
    }
    float* relative = biases + task * p.seqlen_k;
    int32_t *out = indices + task * p.seqlen_k, count = 0;
    for (int64_t i = 0; i < keys.count; ++i) {
      const int64_t key = keys[i];
      relative[key] = bias[key * given.stride_n] - level;
      out[count] = static_cast<int32_t>(key);
      count += relative[key] != -INFINITY;
    }
    counts[task] = count;
  });
  const int64_t b = one_batch ? 0 : heads, h = one_head ? 0 : 1;
  p.keys = {indices, b * p.seqlen_k, h * p.seqlen_k, counts, b, h};
  p.key_bias = {biases, b * p.seqlen_k, h * p.seqlen_k, 1};
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
