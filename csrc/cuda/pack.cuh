// SPDX-License-Identifier: BSD-3-Clause
//
// Selected rows packed: copied to a workspace in the order of the index, each padded with zeros to a multiple of
// 16 bytes. Kernels that stream them then find the rows of a tile side by side, and copy 16 bytes at a time
// whatever the layout of the tensor was. Packing costs a pass over the rows, and pays where many blocks stream
// them:
//
//   rows that are not aligned   unpacked, each block gathers number by number and waits for each
//   from kPackFrom readers on   a guess, unmeasured: with 8 n D bytes moved at 3 TB/s, products at 330 TFLOP/s and
//                               6% of their time lost in gathers, packing pays from 3,700 queries a kv head on
#pragma once

#include "tiles.cuh"

namespace maskattn {

constexpr int64_t kPackFrom = 4096;

// Whether two tensors that are streamed together are packed first. `readers` counts the tokens, selected or not,
// for which the rows stream by: the host does not know how many are selected.
inline bool is_packed(const GpuView& a, const GpuView& b, int64_t readers) {
  return readers >= kPackFrom || (readers > kShort && !(a.aligned && b.aligned));
}

// Pieces of one allocation, each at a multiple of 16 bytes. Without an allocation only their sizes are added up.
class Workspace {
 public:
  explicit Workspace(void* memory) : memory_(static_cast<char*>(memory)) {}

  template <typename T>
  T* take(int64_t count) {
    char* piece = memory_ == nullptr ? nullptr : memory_ + bytes_;
    bytes_ += ceil_div(count * static_cast<int64_t>(sizeof(T)), 16) * 16;
    return reinterpret_cast<T*>(piece);
  }

  // Packed rows of a (batch, heads, seqlen, head_dim) tensor.
  GpuView take_rows(const CudaParams& p, int64_t heads, int64_t seqlen) {
    const int64_t size = element_size(p.dtype), width = ceil_div(p.head_dim * size, 16) * 16 / size;
    char* data = take<char>(p.batch * heads * seqlen * width * size);
    return {{data, heads * seqlen * width, seqlen * width, width}, true};
  }

  int64_t bytes() const { return bytes_; }

 private:
  char* memory_;
  int64_t bytes_ = 0;
};

// Copies the rows of one (b, h) at kRows places of its list, by a block. Entries that name no token give zeros.
template <typename T, int kRows, int kThreads>
MASKATTN_DEVICE void pack_rows(const GpuView& tensor, const GpuView& packed, int64_t b, int64_t h, int head_dim,
                               const TokenList& list, int first) {
  const Rows<T> from = rows_of<T>(tensor, b, h, head_dim), to = rows_of<T>(packed, b, h, head_dim);
  constexpr int kPerChunk = 16 / sizeof(T);
  const int chunks = (head_dim + kPerChunk - 1) / kPerChunk;
  for (int i = thread_index(); i < kRows * chunks; i += kThreads) {
    const int place = first + i / chunks, chunk = i % chunks;
    if (place >= list.count) return;
    const int token = list[place];
    auto* target = reinterpret_cast<uint4*>(to.row(place) + chunk * kPerChunk);
    if (token != kNoToken && from.aligned)
      *target = *reinterpret_cast<const uint4*>(from.row(token) + chunk * kPerChunk);
    else
      *target = load_numbers(from, token, chunk).bits;
  }
}

// In pack_keys.cu: packs the selected keys, their values and biases.
int launch_pack_keys(const CudaParams& from, const KeyPack& to, void* stream);

inline KeyPack take_keys(Workspace& workspace, const CudaParams& p) {
  const int64_t h = p.heads_kv, n = p.seqlen_k;
  if (!is_packed(p.k, p.v, p.seqlen_q * (p.heads_q / h))) return {};
  return {workspace.take_rows(p, h, n), workspace.take_rows(p, h, n),
          RowView{workspace.take<float>(p.batch * h * n), h * n, n, 1}};
}

// Packs the keys if p has a place for them, and lets p read them from there.
template <typename Params>
int pack_keys(Params& p, void* stream) {
  if (p.packed.k.data == nullptr) return 0;
  const int error = launch_pack_keys(p, p.packed, stream);
  p.k = p.packed.k, p.v = p.packed.v, p.key_bias = p.packed.bias, p.keys.indices = nullptr;
  return error;
}

}  // namespace maskattn
