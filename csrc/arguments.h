// SPDX-License-Identifier: BSD-3-Clause
//
// Checks the arguments of an op and turns them into kernel parameters, for every compiled backend.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <optional>
#include <string>
#include <utility>

#include "checks.h"
#include "params.h"

namespace maskattn {

using OptionalTensor = std::optional<Tensor>;
using CheckDevice = void (*)(const Tensor& t, const char* name);  // throws where t is on another device

// The error where memory is missing, in the words by which torch's tools and Lightning know it.
inline std::runtime_error no_memory(const char* what, bool on_gpu) {
  const char* words = on_gpu ? "CUDA out of memory" : "DefaultCPUAllocator: can't allocate memory";
  return std::runtime_error(std::string(words) + " for " + what + " of maskattn_kernels");
}

// A new tensor beside `like`, by torch's C interface: torch::stable::new_empty looks its op up by name at every
// call.
inline Tensor allocate(const Tensor& like, torch::headeronly::IntHeaderOnlyArrayRef shape, ScalarType dtype) {
  auto code = torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype));
  AtenTensorHandle made = nullptr;
  const auto error = aoti_torch_aten_new_empty(like.get(), shape.data(), static_cast<int64_t>(shape.size()), &code,
                                               nullptr, nullptr, 0, nullptr, &made);
  if (error != AOTI_TORCH_SUCCESS) throw no_memory("a tensor", like.is_cuda());
  return Tensor(made);
}

// A dense (B, H, N, D) tensor whose memory is ordered as t's: tokens before heads, or heads before tokens.
inline Tensor new_like(const Tensor& t) {
  const int64_t b = t.size(0), h = t.size(1), n = t.size(2), d = t.size(3);
  if (h > 1 && t.stride(1) < t.stride(2))
    return torch::stable::transpose(allocate(t, {b, n, h, d}, t.scalar_type()), 1, 2);
  return allocate(t, {b, h, n, d}, t.scalar_type());
}

inline Tensor unit_stride(const Tensor& t) {
  return t.stride(t.dim() - 1) == 1 || t.size(t.dim() - 1) == 1 ? t : torch::stable::contiguous(t);
}

inline TensorView view(const Tensor& t) { return {t.data_ptr(), t.stride(0), t.stride(1), t.stride(2)}; }

inline RowView row_view(const Tensor& t) {
  return {static_cast<float*>(t.data_ptr()), t.stride(0), t.stride(1), t.stride(2)};
}

inline int64_t broadcast_stride(const Tensor& t, int64_t dim) { return t.size(dim) == 1 ? 0 : t.stride(dim); }

// Throws unless t lies on query's device, and inside a storage that holds all of it: sharded training frees
// storages between uses, and leaves shapes as they are.
inline void check_place(const Tensor& t, const char* name, const Tensor& query, CheckDevice check_device) {
  check_device(t, name);
  const int index = t.get_device_index(), expected = query.get_device_index();
  if (index != expected)
    reject(name, "query's device, of index " + std::to_string(expected), std::to_string(index));
  int64_t entries = t.storage_offset() + 1, bytes = 0;
  const auto sizes = t.sizes(), strides = t.strides();  // one call for all dimensions
  for (size_t d = 0; d < sizes.size(); ++d) {
    if (sizes[d] == 0) return;
    entries += (sizes[d] - 1) * strides[d];
  }
  if (aoti_torch_get_storage_size(t.get(), &bytes) != AOTI_TORCH_SUCCESS ||
      entries > bytes / static_cast<int64_t>(t.element_size()))
    reject(name, "a storage of " + std::to_string(entries) + " entries", std::to_string(bytes) + " bytes");
}

// The tensors behind one call, kept alive while the kernels read them.
struct Inputs {
  Tensor query, key, value;
  OptionalTensor query_indices, query_counts, key_indices, key_counts, key_bias;
};

inline SelectionView selection(OptionalTensor& indices, OptionalTensor& counts, const char* name, int64_t batch,
                               int64_t heads, int64_t seqlen) {
  if (indices.has_value() != counts.has_value())
    reject(name, "both indices and counts, or neither", "one of them");
  if (!indices.has_value()) return {};
  for (const Tensor* t : {&*indices, &*counts}) check_dtype(*t, ScalarType::Int, name);
  check_shape(*indices, name, {batch, heads, -1}, true);
  check_shape(*counts, name, {batch, heads}, true);
  if (indices->size(2) != seqlen) check_shape(*indices, name, {batch, heads, seqlen});
  indices = unit_stride(*indices);
  return {static_cast<const int32_t*>(indices->data_ptr()),
          broadcast_stride(*indices, 0),
          broadcast_stride(*indices, 1),
          static_cast<const int32_t*>(counts->data_ptr()),
          broadcast_stride(*counts, 0),
          broadcast_stride(*counts, 1)};
}

inline DType dtype_of(const Tensor& t) {
  switch (t.scalar_type()) {
    case ScalarType::Float:
      return DType::kFloat32;
    case ScalarType::Half:
      return DType::kFloat16;
    case ScalarType::BFloat16:
      return DType::kBFloat16;
    default:
      reject("query", "dtype float32, float16 or bfloat16", dtype_name(t.scalar_type()));
  }
}

// All but the views of the (B, H, N, D) tensors, which differ between the backends.
template <class View>
void fill_inputs(Inputs& in, double scale, ForwardCall<View>& p, CheckDevice check_device) {
  for (const auto& [t, name] : {std::pair{&in.query_indices, "query_mask.indices"},
                                {&in.query_counts, "query_mask.counts"},
                                {&in.key_indices, "key_mask.indices"},
                                {&in.key_counts, "key_mask.counts"},
                                {&in.key_bias, "key_bias"}})
    if (t->has_value()) check_place(**t, name, in.query, check_device);
  for (const auto& [t, name] : {std::pair{&in.query, "query"}, {&in.key, "key"}, {&in.value, "value"}}) {
    check_place(*t, name, in.query, check_device);
    check_shape(*t, name, {-1, -1, -1, -1});
    check_same_dtype(*t, in.query, name);
  }
  p.dtype = dtype_of(in.query);
  p.batch = in.query.size(0), p.heads_q = in.query.size(1), p.seqlen_q = in.query.size(2);
  p.heads_kv = in.key.size(1), p.seqlen_k = in.key.size(2);
  const int64_t head_dim = in.query.size(3);
  if (head_dim < 1 || head_dim > kMaxHeadDim) reject("query", "a head_dim of 1 to 256", std::to_string(head_dim));
  p.head_dim = static_cast<int>(head_dim);
  p.scale = static_cast<float>(scale);
  check_shape(in.key, "key", {p.batch, p.heads_kv, p.seqlen_k, head_dim});
  check_shape(in.value, "value", {p.batch, p.heads_kv, p.seqlen_k, head_dim});
  if (p.heads_kv == 0 ? p.heads_q != 0 : p.heads_q % p.heads_kv != 0)
    reject("query", "a number of heads that is a multiple of key's " + std::to_string(p.heads_kv),
           std::to_string(p.heads_q));
  if (p.seqlen_q > INT32_MAX || p.seqlen_k > INT32_MAX)
    reject("query", "query and key lengths below 2^31", std::to_string(std::max(p.seqlen_q, p.seqlen_k)));

  in.query = unit_stride(in.query), in.key = unit_stride(in.key), in.value = unit_stride(in.value);
  p.queries = selection(in.query_indices, in.query_counts, "query_mask", p.batch, p.heads_q, p.seqlen_q);
  p.keys = selection(in.key_indices, in.key_counts, "key_mask", p.batch, p.heads_kv, p.seqlen_k);
  if (in.key_bias.has_value()) {
    check_dtype(*in.key_bias, ScalarType::Float, "key_bias");
    check_shape(*in.key_bias, "key_bias", {p.batch, p.heads_kv, p.seqlen_k});
    p.key_bias = row_view(*in.key_bias);
  }
}

// The further arguments of the backward pass.
struct BackwardInputs {
  Tensor dout, out, lse;
  OptionalTensor dlse;
};

template <class View>
void fill_backward_inputs(BackwardInputs& in, const Tensor& query, BackwardCall<View>& p,
                          CheckDevice check_device) {
  for (const auto& [t, name] : {std::pair{&in.dout, "dout"}, {&in.out, "out"}, {&in.lse, "lse"}})
    check_place(*t, name, query, check_device);
  for (const auto& [t, name] : {std::pair{&in.dout, "dout"}, {&in.out, "out"}}) {
    check_same_dtype(*t, query, name);
    check_shape(*t, name, {p.batch, p.heads_q, p.seqlen_q, p.head_dim});
  }
  check_dtype(in.lse, ScalarType::Float, "lse");
  check_shape(in.lse, "lse", {p.batch, p.heads_q, p.seqlen_q});
  in.dout = unit_stride(in.dout), in.out = unit_stride(in.out), in.lse = unit_stride(in.lse);
  p.lse = row_view(in.lse);
  if (in.dlse.has_value()) {
    check_place(*in.dlse, "dlse", query, check_device);
    check_dtype(*in.dlse, ScalarType::Float, "dlse");
    check_shape(*in.dlse, "dlse", {p.batch, p.heads_q, p.seqlen_q});
    p.dlse = row_view(*in.dlse);
  }
}

inline void check_mask(const Tensor& mask, const char* name, const Tensor& query, CheckDevice check_device) {
  check_place(mask, name, query, check_device);
  check_dtype(mask, ScalarType::Bool, name);
}

// A tensor of one value for each token, (B | 1, N) or (B | 1, H | 1, N), as (b, h, n).
struct PerToken {
  void* data;
  int64_t batches, heads, seqlen;
  int64_t stride_b, stride_h, stride_n;

  explicit PerToken(const Tensor& t) : data(t.data_ptr()), heads(1), stride_h(0) {
    const auto sizes = t.sizes(), strides = t.strides();
    batches = sizes.front(), seqlen = sizes.back();
    stride_b = strides.front(), stride_n = strides.back();
    if (sizes.size() == 3) heads = sizes[1], stride_h = strides[1];
  }

  int64_t broadcast_b() const { return batches == 1 ? 0 : stride_b; }
  int64_t broadcast_h() const { return heads == 1 ? 0 : stride_h; }
};

// One of `batch` entries of `heads` heads and `seqlen` tokens; its place and dtype are checked.
inline PerToken per_token(const Tensor& t, const char* name, int64_t batch, int64_t heads, int64_t seqlen) {
  if (t.dim() == 2) {
    check_shape(t, name, {batch, -1}, true);
  } else {
    check_shape(t, name, {batch, heads, -1}, true);
  }
  const PerToken values(t);
  if (values.seqlen != seqlen) check_shape(t, name, {batch, heads, seqlen});
  return values;
}

// A mask (B, H, N) to be listed for any call.
inline PerToken mask_to_list(const Tensor& mask, CheckDevice check_device) {
  check_mask(mask, "mask", mask, check_device);
  check_shape(mask, "mask", {-1, -1, -1});
  const PerToken values(mask);
  if (values.seqlen > INT32_MAX) reject("mask", "a length below 2^31", std::to_string(values.seqlen));
  return values;
}

// The mask of a call's queries or keys.
inline PerToken mask_of(const Tensor& mask, const char* name, const Tensor& query, int64_t batch, int64_t heads,
                        int64_t seqlen, CheckDevice check_device) {
  check_mask(mask, name, query, check_device);
  return per_token(mask, name, batch, heads, seqlen);
}

// The bias of a call's keys, which may broadcast.
inline RowView bias_of(const Tensor& bias, const Tensor& query, int64_t batch, int64_t heads, int64_t seqlen,
                       CheckDevice check_device) {
  check_place(bias, "key_bias", query, check_device);
  check_dtype(bias, ScalarType::Float, "key_bias");
  const PerToken values = per_token(bias, "key_bias", batch, heads, seqlen);
  return {static_cast<float*>(values.data), values.broadcast_b(), values.broadcast_h(), values.stride_n};
}

inline bool same_view(const OptionalTensor& a, const OptionalTensor& b) {
  if (!a || !b || a->data_ptr() != b->data_ptr() || a->dim() != b->dim()) return false;
  for (int64_t i = 0; i < a->dim(); ++i)
    if (a->size(i) != b->size(i) || a->stride(i) != b->stride(i)) return false;
  return true;
}

inline SelectParams select_params(const PerToken& mask, int32_t* indices, int32_t* counts) {
  return {static_cast<const bool*>(mask.data),
          mask.stride_b,
          mask.stride_h,
          mask.stride_n,
          mask.batches,
          mask.heads,
          mask.seqlen,
          indices,
          counts};
}

}  // namespace maskattn
