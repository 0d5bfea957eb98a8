// SPDX-License-Identifier: BSD-3-Clause
//
// What an instruction-set tier offers to the drivers in forward.cpp and backward.cpp. A tier works on one
// block of queries or one chunk of keys at a time, on one thread; the drivers own scheduling and memory.
//
// The packed formats are private to a tier: the drivers only know their sizes.
#pragma once

#include <cstdint>

#include "../params.h"

namespace maskattn {

constexpr float kLog2e = 1.4426950408889634f;
constexpr float kLn2 = 0.6931471805599453f;

// The selected tokens of one (b, h): `count` of `seqlen`, ascending.
struct TokenList {
  const int32_t* indices;  // nullptr: all
  int64_t count;
  int64_t seqlen;

  int64_t operator[](int64_t i) const { return indices ? indices[i] : i; }

  // Rows [gap_begin(i), (*this)[i]) lie between selected token i - 1 and i. The block that writes token i
  // also fills that gap with zeros, and the last block the rows after its last token.
  int64_t gap_begin(int64_t i) const { return i == 0 ? 0 : (*this)[i - 1] + 1; }
};

// One (b, h) slice of a (B, H, N, D) tensor.
struct Slice {
  char* data;
  int64_t row_bytes;  // distance of two tokens

  char* row(int64_t n) const { return data + n * row_bytes; }
};

// K and V of one (b, h_kv), packed for the forward pass.
struct PackedKeys {
  void* data;
  int64_t count;
};

struct ForwardBlock {
  DType dtype;
  int head_dim;
  float scale;
  Slice q, out;
  float* lse;  // of this (b, h), contiguous over tokens
  TokenList queries;
  int64_t begin, end;  // this block's part of `queries`
  PackedKeys keys;
};

struct PackKeysBlock {
  DType dtype;
  int head_dim;
  Slice k, v;
  const float* bias;  // of this (b, h), nullptr if absent
  int64_t bias_stride;
  TokenList keys;
  int64_t begin, end;  // this block's part of `keys`, begin a multiple of Engine::pack_block
  PackedKeys packed;
};

// At most as many queries share a key head where keys are not packed, and such keys are taken so many at a time.
constexpr int64_t kMostFewQueries = 8, kFewKeys = 512;

// Few queries against a chunk of the keys that they share, where these lie.
struct FewQueries {
  DType dtype;
  int head_dim;
  float scale;
  const char* const* query_rows;
  int64_t query_count;
  Slice k, v;
  const float* bias;  // of this (b, h), nullptr if absent
  int64_t bias_stride;
  TokenList keys;
  int64_t begin, end;  // at most kFewKeys
  float* partial;      // (query_count, few_row_floats), written whole
};

// Adds the partial results of `chunks` chunks in order, for the queries of one head; writes their rows and zeros
// between them.
struct CombineChunks {
  DType dtype;
  int head_dim;
  Slice out;
  float* lse;
  TokenList queries;
  const float* partial;  // of the first chunk and query; those of the next chunk are chunk_stride floats away
  int64_t chunks, chunk_stride;
};

// One query block of the backward pass, packed once and read by every key chunk.
struct PackQueriesBlock {
  DType dtype;
  int head_dim;
  float scale;
  Slice q, out, dout;
  const float* lse;
  const float* dlse;  // nullptr if absent
  int64_t dlse_stride;
  TokenList queries;
  int64_t begin, end;
  void* packed;
};

// Queries [begin, end) of the selected queries of one head.
struct QueryBlock {
  int64_t head, begin, end;
};

// One chunk of keys against a run of packed query blocks: adds to its dK, dV and dbias and writes one partial dQ.
struct KeyChunk {
  DType dtype;
  int head_dim;
  float scale;
  Slice k, v;
  const float* bias;
  int64_t bias_stride;
  TokenList keys;
  int64_t begin, end;
  // The packed query blocks of the query heads that share this key head, `packed_stride` bytes apart.
  const char* packed_queries;
  int64_t packed_stride;
  const QueryBlock* blocks;
  int64_t block_count;
  float* key_grads;   // dK and dV of this chunk so far, in the tier's own order; zero before the first call
  float* dbias;       // (keys of this chunk, rounded up to 32), zero before the first call; nullptr if absent
  float* dq_partial;  // (block_count, dq block), written whole
};

// Writes a chunk's dK and dV, and zeros to the rows between its keys.
struct StoreKeyGrads {
  DType dtype;
  int head_dim;
  float scale;
  Slice dk, dv;
  TokenList keys;
  int64_t begin, end;
  const float* key_grads;
};

// Adds `partials` dq blocks, `partial_stride` floats apart, in order; writes the rows of queries [begin, end)
// and zeros between them.
struct ReduceDq {
  DType dtype;
  int head_dim;
  float scale;
  Slice dq;
  TokenList queries;
  int64_t begin, end;
  const float* partial;
  int64_t partials, partial_stride;
};

struct Engine {
  const char* name;
  int64_t forward_queries;   // queries of a forward block
  int64_t backward_queries;  // queries of a backward block
  int64_t query_step;        // both are multiples of it, and blocks begin at its multiples
  int64_t pack_block;        // keys packed at a time

  int64_t (*packed_keys_bytes)(int head_dim, int64_t keys);
  void (*pack_keys)(const PackKeysBlock&);
  int64_t (*forward_scratch_bytes)(int head_dim);
  void (*forward_block)(const ForwardBlock&, void* scratch);

  int64_t (*few_row_floats)(int head_dim);
  int64_t (*few_scratch_bytes)();  // for attend_few and combine_few
  void (*attend_few)(const FewQueries&, void* scratch);
  void (*combine_few)(const CombineChunks&, void* scratch);

  int64_t (*packed_queries_bytes)(int head_dim);
  void (*pack_queries)(const PackQueriesBlock&);
  int64_t (*chunk_scratch_bytes)(int head_dim, int64_t keys);  // for key_chunk and store_key_grads
  int64_t (*key_grad_floats)(int head_dim, int64_t keys);
  void (*key_chunk)(const KeyChunk&, void* scratch);
  void (*store_key_grads)(const StoreKeyGrads&, void* scratch);
  int64_t (*dq_block_floats)(int head_dim);  // reduce_dq needs scratch for twice as many
  void (*reduce_dq)(const ReduceDq&, void* scratch);
};

}  // namespace maskattn
