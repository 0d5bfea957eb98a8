// SPDX-License-Identifier: BSD-3-Clause
//
// Tiles of selected tokens that stream by while other tiles stay: the loop of all three attention kernels. Two
// tiles of each streamed tensor lie in shared memory; one is multiplied while the other is gathered, row by row,
// from wherever its tokens are. The gather needs the token numbers, which are in memory too: each thread reads one
// of them a further tile ahead, with its terms (bias, or lse and delta).
#pragma once

#include "tiles.cuh"

namespace maskattn {

// Shared memory that the loop needs besides the tiles.
template <int kTokens, typename Term>
struct StreamMemory {
  int tokens[2][kTokens];
  Term terms[2][kTokens];
};

// For every tile of `count` tokens from place `begin` of a list on:
//   token_of(place)             the token at a place, kNoToken where no row is read
//   term_of(place, token)       its terms
//   gather(buffer, tokens)      starts the copies of a tile into buffer 0 or 1
//   multiply(buffer, terms)     uses a tile that has arrived
template <int kTokens, typename Term, typename TokenOf, typename TermOf, typename Gather, typename Multiply>
MASKATTN_DEVICE void stream(StreamMemory<kTokens, Term>& memory, int begin, int end, TokenOf token_of,
                            TermOf term_of, Gather gather, Multiply multiply) {
  if (begin >= end) return;
  const int own = thread_index();
  const bool reads = own < kTokens;
  const auto token_at = [&](int place) { return place < end ? token_of(place) : kNoToken; };
  int next_token = kNoToken;
  block_barrier();  // all threads have left an earlier loop over this memory
  if (reads) {
    const int token = token_at(begin + own);
    next_token = token_at(begin + kTokens + own);
    store_shared(&memory.tokens[0][own], token);
    store_shared(&memory.tokens[1][own], next_token);
    store_shared(&memory.terms[0][own], term_of(begin + own, token));
  }
  block_barrier();
  gather(0, memory.tokens[0]);

  int buffer = 0;
  for (int start = begin; start < end; start += kTokens) {
    wait_copies();
    block_barrier();  // this tile has arrived, and no thread reads the other one any more
    const int place = start + kTokens + own;
    if (start + kTokens < end) gather(buffer ^ 1, memory.tokens[buffer ^ 1]);
    Term next_term{};
    int token_after = kNoToken;
    if (reads) {
      next_term = term_of(place, next_token);
      token_after = token_at(place + kTokens);
    }
    multiply(buffer, memory.terms[buffer]);
    if (reads) {
      store_shared(&memory.terms[buffer ^ 1][own], next_term);
      store_shared(&memory.tokens[buffer][own], token_after);
    }
    next_token = token_after;
    buffer ^= 1;
  }
}

}  // namespace maskattn
