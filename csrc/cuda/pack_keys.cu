// SPDX-License-Identifier: BSD-3-Clause
//
// The selected keys of every kv head, their values and biases, in the order of the index. One block owns kRows of
// them. An entry of the index that names no token gets a bias of -inf, hence weight 0.
#include "pack.cuh"
#include "scores.cuh"

namespace maskattn {
namespace {

constexpr int kRows = 32;
constexpr int kThreads = 128;

struct Packing {
  CudaParams from;
  KeyPack to;
};

template <typename T>
__global__ __launch_bounds__(kThreads) void pack_keys_kernel(const __grid_constant__ Packing p) {
  const CudaParams& from = p.from;
  const uint32_t blocks = static_cast<uint32_t>(ceil_div(from.seqlen_k, kRows));
  const uint32_t heads = static_cast<uint32_t>(from.heads_kv), bh = block_index() / blocks;
  const int first = static_cast<int>(block_index() % blocks) * kRows;
  const int64_t b = bh / heads, h = bh % heads;

  const TokenList keys = token_list(from.keys, b, h, from.seqlen_k);
  if (first >= keys.count) return;
  pack_rows<T, kRows, kThreads>(from.k, p.to.k, b, h, from.head_dim, keys, first);
  pack_rows<T, kRows, kThreads>(from.v, p.to.v, b, h, from.head_dim, keys, first);
  const KeyBias bias = key_bias_of<float>(from, b, h);  // unscaled: each reader applies its own unit
  const int place = first + thread_index();
  if (thread_index() < kRows && place < keys.count) p.to.bias.data[bh * from.seqlen_k + place] = bias(keys[place]);
}

}  // namespace

int launch_pack_keys(const CudaParams& from, const KeyPack& to, void* stream) {
  return for_instance(from, [&](auto t, auto) {
    return launch(pack_keys_kernel<decltype(t)>, from.batch * from.heads_kv * ceil_div(from.seqlen_k, kRows),
                  kThreads, 0, Packing{from, to}, stream);
  });
}

}  // namespace maskattn
