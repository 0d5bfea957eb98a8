// SPDX-License-Identifier: BSD-3-Clause
//
// Mask to ascending token indices and counts, in one launch. One block owns one row of the mask, each of its warps
// an equal part of the row: it counts its part, adds up the counts of the warps before it, and reads its part
// again to write. Inside a warp a ballot gives each selected token its place. Entries past the count hold the
// length.
#include "tokens.cuh"

namespace maskattn {
namespace {

constexpr int kThreads = 512;
constexpr int kWarps = kThreads / kWarpSize;

__global__ __launch_bounds__(kThreads) void select_tokens_kernel(const __grid_constant__ SelectParams p) {
  int* counts = reinterpret_cast<int*>(shared_memory());
  const int64_t row = block_index(), b = row / p.heads, h = row % p.heads;
  // As bytes: the byte of a True may hold any nonzero value.
  const auto* mask = reinterpret_cast<const uint8_t*>(p.mask) + b * p.stride_b + h * p.stride_h;
  int32_t* indices = p.indices + row * p.seqlen;
  const int64_t part = ceil_div(p.seqlen, kThreads) * kWarpSize, begin = warp_index() * part;
  const int64_t end = begin + part < p.seqlen ? begin + part : p.seqlen;

  const auto selected = [&](int64_t first) {
    const int64_t n = first + lane_index();
    return ballot(n < end && mask[n * p.stride_n] != 0);
  };
  int own = 0;
#pragma unroll 4
  for (int64_t n = begin; n < end; n += kWarpSize) own += bits_set(selected(n));
  if (lane_index() == 0) store_shared(counts + warp_index(), own);
  block_barrier();

  int before = 0, total = 0;
  for (int warp = 0; warp < kWarps; ++warp) {
    const int count = load_shared(counts + warp);
    before += warp < warp_index() ? count : 0;
    total += count;
  }
#pragma unroll 4
  for (int64_t n = begin; n < end; n += kWarpSize) {
    const uint32_t bits = selected(n);
    const uint32_t own_bit = 1u << lane_index();
    if (bits & own_bit) indices[before + bits_set(bits & (own_bit - 1))] = static_cast<int32_t>(n) + lane_index();
    before += bits_set(bits);
  }
  for (int64_t n = total + thread_index(); n < p.seqlen; n += kThreads)
    indices[n] = static_cast<int32_t>(p.seqlen);
  if (thread_index() == 0) p.counts[row] = total;
}

}  // namespace

int launch_cuda_select_tokens(const SelectParams& p, void* stream) {
  return launch(select_tokens_kernel, p.batch * p.heads, kThreads, kWarps * static_cast<int>(sizeof(int)), p,
                stream);
}

}  // namespace maskattn
