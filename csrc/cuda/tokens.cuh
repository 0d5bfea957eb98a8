// SPDX-License-Identifier: BSD-3-Clause
//
// How the kernels read a selection of tokens, and find the tokens that are not in it.
#pragma once

#include "device.cuh"
#include "params.h"

namespace maskattn {

constexpr int kNoToken = -1;

MASKATTN_HOST_DEVICE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

MASKATTN_DEVICE int lane_index() { return thread_index() % kWarpSize; }
MASKATTN_DEVICE int warp_index() { return thread_index() / kWarpSize; }

// The selected tokens of one (b, h), ascending.
struct TokenList {
  const int32_t* indices;  // nullptr: all
  int count;
  int seqlen;
  bool is_shared = false;  // the indices lie in shared memory

  MASKATTN_DEVICE int entry(int place) const { return is_shared ? load_shared(indices + place) : indices[place]; }

  // Entry `place`; kNoToken past the end and for an entry outside of the sequence, which only an index made by
  // hand can hold: memory outside of a tensor is never touched.
  MASKATTN_DEVICE int operator[](int place) const {
    if (place >= count) return kNoToken;
    if (indices == nullptr) return place;
    const int token = entry(place);
    return token >= 0 && token < seqlen ? token : kNoToken;
  }
};

MASKATTN_DEVICE TokenList token_list(const SelectionView& s, int64_t b, int64_t h, int64_t seqlen) {
  const int length = static_cast<int>(seqlen);
  if (s.counts == nullptr) return {nullptr, length, length};
  const int count = s.counts[b * s.count_stride_b + h * s.count_stride_h];
  const int32_t* indices = s.indices == nullptr ? nullptr : s.indices + b * s.stride_b + h * s.stride_h;
  return {indices, count < length ? count : length, length};
}

// The token list of a short mask, made by the whole block in kShort ints of shared memory: each warp counts all
// tokens, 32 at a time, and one warp writes. A barrier must follow.
template <int kThreads>
MASKATTN_DEVICE TokenList list_mask(const MaskView& mask, int64_t b, int64_t h, int64_t seqlen, int32_t* list) {
  const int length = static_cast<int>(seqlen);
  if (mask.data == nullptr) return {nullptr, length, length};
  // As bytes: the byte of a True may hold any nonzero value.
  const auto* row = reinterpret_cast<const uint8_t*>(mask.data) + b * mask.stride_b + h * mask.stride_h;
  int count = 0;
  for (int first = 0; first < length; first += kWarpSize) {
    const int token = first + lane_index();
    const uint32_t bits = ballot(token < length && row[token * mask.stride_n] != 0);
    const uint32_t own_bit = 1u << lane_index();
    if (first / kWarpSize % (kThreads / kWarpSize) == warp_index() && (bits & own_bit))
      store_shared(list + count + bits_set(bits & (own_bit - 1)), token);
    count += bits_set(bits);
  }
  return {list, count, length, true};
}

// How many entries of the list lie below `token`. All lanes of a warp search together, 32 places a round: 3 rounds
// of loads for 16,384 tokens where halving takes 14.
MASKATTN_DEVICE int entries_below(const TokenList& list, int token) {
  int low = 0, high = list.count;  // at least, at most
  while (low < high) {
    const int step = (high - low + kWarpSize - 1) / kWarpSize;
    const int64_t probe = low + (lane_index() + int64_t{1}) * step - 1;
    const bool below = probe < high && list.entry(static_cast<int>(probe)) < token;
    low += bits_set(ballot(below)) * step;
    high = low + step - 1 < high ? low + step - 1 : high;
  }
  return low;
}

// Calls visit(token) for every token of [first, first + kTokens) that the list does not hold: the tokens of a
// block that get zeros. A warp takes one token at a time. `found` is kTokens ints of shared memory, free
// afterwards.
template <int kTokens, int kThreads, typename Visit>
MASKATTN_DEVICE void for_unselected(const TokenList& list, int first, int* found, Visit visit) {
  if (list.indices == nullptr) return;
  for (int i = thread_index(); i < kTokens; i += kThreads) store_shared(found + i, 0);
  block_barrier();
  const int low = entries_below(list, first);
  for (int i = thread_index(); i < kTokens; i += kThreads) {
    const int token = list[low + i];
    if (token >= first && token - first < kTokens) store_shared(found + token - first, 1);
  }
  block_barrier();
  for (int i = warp_index(); i < kTokens; i += kThreads / kWarpSize)
    if (first + i < list.seqlen && load_shared(found + i) == 0) visit(first + i);
  block_barrier();
}

}  // namespace maskattn
