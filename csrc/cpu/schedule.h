// SPDX-License-Identifier: BSD-3-Clause
//
// What the drivers share: token lists of a call, aligned workspace, and a queue of tasks. Any
// thread may run any task; what a task computes does not depend on it, nor on the number of threads.
#pragma once

#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <new>
#include <optional>
#include <utility>
#include <vector>

#include "engine.h"
#include "integers.h"
#include "params.h"

namespace maskattn {

inline int64_t align64(int64_t bytes) { return round_up(bytes, 64); }

// Cuts [0, count) into as few blocks as possible, of at most `most` items, and nearly equal, so that threads which
// take one block at a time end together. Blocks begin at multiples of `step`; `most` is a multiple of it. With no
// items there is one empty block: one block must still write the zeros.
template <class Visit>
void for_each_block(int64_t count, int64_t most, int64_t step, const Visit& visit) {
  const int64_t steps = ceil_div(count, step), blocks = std::max<int64_t>(1, ceil_div(count, most));
  for (int64_t i = 0; i < blocks; ++i)
    visit(i * steps / blocks * step, std::min(count, (i + 1) * steps / blocks * step));
}

// The work of all pieces together, and of the largest.
struct Load {
  int64_t total = 0, largest = 0;

  void add(int64_t piece) { total += piece, largest = std::max(largest, piece); }
  // Whether threads that take piece after piece end within a quarter of each other.
  bool even_over(int threads) const { return threads == 1 || 4 * threads * largest <= total; }
};

// 64-byte aligned memory that is not initialised (a sanitizer build fills it with NaN). A thread keeps a few
// blocks for later calls: on short sequences, fresh pages would cost more than the arithmetic.
class Workspace {
 public:
  // The bytes of `rows` rows of 4-byte words; expanded tensors may ask for more than can be counted.
  static int64_t bytes_of_rows(int64_t rows, int64_t words) {
    if (rows > INT64_MAX / 4 / words) throw std::bad_alloc();
    return rows * words * 4;
  }

  explicit Workspace(int64_t bytes) {
    if (bytes == 0) return;
    block_.bytes = align64(bytes) + 64;
    KeptBlocks& kept = thread_kept();
    for (auto it = kept.rbegin(); it != kept.rend(); ++it)  // the smallest that is large enough
      if (it->bytes >= block_.bytes) {
        block_ = std::exchange(*it, Block{});
        break;
      }
    if (block_.data == nullptr) allocate();
    if (block_.data == nullptr) throw std::bad_alloc();
#ifdef MASKATTN_POISON
    std::memset(block_.data, 0xff, block_.bytes);
#endif
  }
  ~Workspace() {
    if (block_.data == nullptr) return;
    for (Block& kept : thread_kept())
      if (block_.bytes <= kMostKept && kept.bytes < block_.bytes) std::swap(kept, block_);
    std::free(block_.data);
  }
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;

  char* at(int64_t byte) const { return static_cast<char*>(block_.data) + byte; }

 private:
#ifdef MASKATTN_POISON
  static constexpr int64_t kMostKept = 0;  // a block larger than asked for would hide an overrun
#else
  static constexpr int64_t kMostKept = 16 << 20;
#endif
  static constexpr int64_t kHugePage = 2 << 20;

  // Large blocks ask for huge pages: kernels walk through many rows at once, and through few pages.
  void allocate() {
    const bool huge = block_.bytes >= kHugePage / 8;
    if (huge) block_.bytes = round_up(block_.bytes, kHugePage);
    block_.data = std::aligned_alloc(huge ? kHugePage : 64, block_.bytes);
#ifdef MADV_HUGEPAGE
    if (huge && block_.data != nullptr) madvise(block_.data, block_.bytes, MADV_HUGEPAGE);
#endif
  }

  struct Block {
    int64_t bytes = 0;
    void* data = nullptr;
  };
  struct KeptBlocks : std::array<Block, 4> {  // largest first
    ~KeptBlocks() {
      for (const Block& kept : *this) std::free(kept.data);
    }
  };
  static KeptBlocks& thread_kept() {
    static thread_local KeptBlocks kept;
    return kept;
  }

  Block block_;
};

// Waking a thread costs a few microseconds: a thread should find this many multiply-adds (or moved bytes) to do.
constexpr int64_t kWorkPerThread = 1 << 18;

// Runs task(i, scratch) for every i in [0, tasks), each thread with scratch of its own. `work` estimates the
// multiply-adds of all tasks together. A thread begins with its own share of neighbouring tasks, the same share in
// every call, so that rows stay in the cache that has them; then it takes tasks of the others.
template <class Task>
void run_tasks(const ThreadPool& pool, int64_t tasks, int64_t work, int64_t scratch_bytes, const Task& task) {
  if (tasks <= 0) return;
  const int64_t workers = std::min({tasks, static_cast<int64_t>(pool.threads), 1 + work / kWorkPerThread});
  const int64_t stride = align64(scratch_bytes);
  const Workspace scratch(workers * stride);
  if (workers == 1) {
    for (int64_t i = 0; i < tasks; ++i) task(i, scratch.at(0));
    return;
  }
  struct alignas(64) Share {
    std::atomic<int64_t> next;
    int64_t end;
  };
  std::vector<Share> shares(workers);
  for (int64_t w = 0; w < workers; ++w)
    shares[w].next = w * tasks / workers, shares[w].end = (w + 1) * tasks / workers;
  struct Shared {
    const Task& task;
    const Workspace& scratch;
    std::vector<Share>& shares;
    int64_t stride;
  } shared{task, scratch, shares, stride};
  const auto run = [](void* ctx, int64_t worker) {
    auto& s = *static_cast<Shared*>(ctx);
    char* own = s.scratch.at(worker * s.stride);
    const int64_t count = std::ssize(s.shares);
    for (int64_t w = worker; w < worker + count; ++w) {
      Share& share = s.shares[w % count];
      for (int64_t i = share.next++; i < share.end; i = share.next++) s.task(i, own);
    }
  };
  pool.run(workers, run, &shared);
}

inline TokenList token_list(const SelectionView& s, int64_t b, int64_t h, int64_t seqlen) {
  if (s.indices == nullptr) return {nullptr, seqlen, seqlen};
  return {s.indices + b * s.stride_b + h * s.stride_h, s.counts[b * s.count_stride_b + h * s.count_stride_h],
          seqlen};
}

inline Slice slice(const TensorView& t, DType dtype, int64_t b, int64_t h) {
  const int64_t size = element_size(dtype);
  return {static_cast<char*>(t.data) + (b * t.stride_b + h * t.stride_h) * size, t.stride_n * size};
}

inline float* row(const RowView& t, int64_t b, int64_t h) {
  return t.data == nullptr ? nullptr : t.data + b * t.stride_b + h * t.stride_h;
}

// -inf for the tokens between the block's queries and, after the last one, for those that follow.
inline void fill_lse_gaps(float* lse, const TokenList& tokens, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i)
    for (int64_t n = tokens.gap_begin(i); n < tokens[i]; ++n) lse[n] = -INFINITY;
  if (end == tokens.count)
    for (int64_t n = tokens.gap_begin(end); n < tokens.seqlen; ++n) lse[n] = -INFINITY;
}

// The biases of a call as kernels take them: relative to the largest of the selected keys of their head, so that
// lse, which is relative to it too, has room for the logarithm of a sum beside biases of any size. Keys whose bias
// is -inf then are not selected any more: what such a key holds must not be seen. The call reads the memory of
// this object.
class RelativeBiases {
 public:
  RelativeBiases(ForwardParams& params, const ThreadPool& pool);

 private:
  std::optional<Workspace> memory_;
};

// Whether every key head has so few queries, and so many keys, that reading the keys takes longer than the
// arithmetic; and the forward pass of such a call.
bool has_few_queries(const ForwardParams& params);
void attend_few_queries(const ForwardParams& params, const ThreadPool& pool);

// Throws std::runtime_error naming `what` unless every list is ascending and inside the sequence.
void check_selection(const SelectionView& selection, int64_t batch, int64_t heads, int64_t seqlen,
                     const char* what);

// The tier that serves a dtype on this CPU, or the one MASKATTN_CPU_TIER asks for.
const Engine& choose_engine(DType dtype);

}  // namespace maskattn
