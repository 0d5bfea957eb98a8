// SPDX-License-Identifier: BSD-3-Clause
//
// The CPU ops as torch sees them: check, allocate, fill the parameter struct, launch.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <tuple>

#include "../checks.h"
#include "../params.h"
#include "schedule.h"

namespace maskattn {
namespace {

using torch::headeronly::ScalarType;
using OptionalTensor = std::optional<Tensor>;

ThreadPool torch_threads() {
  return {static_cast<int>(torch::stable::get_num_threads()),
          [](int64_t n, void (*work)(void*, int64_t), void* ctx) {
            torch::stable::parallel_for(0, n, 1, [&](int64_t begin, int64_t end) {
              for (int64_t i = begin; i < end; ++i) work(ctx, i);
            });
          }};
}

// A dense (B, H, N, D) tensor whose memory is ordered as t's: tokens before heads, or heads before tokens.
Tensor new_like(const Tensor& t) {
  const int64_t b = t.size(0), h = t.size(1), n = t.size(2), d = t.size(3);
  if (h > 1 && t.stride(1) < t.stride(2))
    return torch::stable::transpose(torch::stable::new_empty(t, {b, n, h, d}), 1, 2);
  return torch::stable::new_empty(t, {b, h, n, d});
}

Tensor unit_stride(const Tensor& t) {
  return t.stride(t.dim() - 1) == 1 || t.size(t.dim() - 1) == 1 ? t : torch::stable::contiguous(t);
}

TensorView view(const Tensor& t) { return {t.data_ptr(), t.stride(0), t.stride(1), t.stride(2)}; }

RowView row_view(const Tensor& t) {
  return {static_cast<float*>(t.data_ptr()), t.stride(0), t.stride(1), t.stride(2)};
}

int64_t broadcast_stride(const Tensor& t, int64_t dim) { return t.size(dim) == 1 ? 0 : t.stride(dim); }

// The tensors behind one call, kept alive while the kernels read them.
struct Inputs {
  Tensor query, key, value;
  OptionalTensor query_indices, query_counts, key_indices, key_counts, key_bias;
};

SelectionView selection(OptionalTensor& indices, OptionalTensor& counts, const char* name, int64_t batch,
                        int64_t heads, int64_t seqlen) {
  if (indices.has_value() != counts.has_value()) fail(name, "indices or counts alone", "both or neither");
  if (!indices.has_value()) return {};
  for (const Tensor* t : {&*indices, &*counts}) {
    check_cpu(*t, name);
    check_dtype(*t, ScalarType::Int, name, "int32");
  }
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

DType dtype_of(const Tensor& t) {
  switch (t.scalar_type()) {
    case ScalarType::Float:
      return DType::kFloat32;
    case ScalarType::Half:
      return DType::kFloat16;
    case ScalarType::BFloat16:
      return DType::kBFloat16;
    default:
      fail("query", "another dtype", "float32, float16 or bfloat16");
      return DType::kFloat32;
  }
}

void fill_inputs(Inputs& in, double scale, ForwardParams& p) {
  for (const auto& [t, name] : {std::pair{&in.query, "query"}, {&in.key, "key"}, {&in.value, "value"}}) {
    check_cpu(*t, name);
    check_shape(*t, name, {-1, -1, -1, -1});
    if (t->scalar_type() != in.query.scalar_type()) fail(name, "another dtype", "the dtype of query");
  }
  p.dtype = dtype_of(in.query);
  p.batch = in.query.size(0), p.heads_q = in.query.size(1), p.seqlen_q = in.query.size(2);
  p.heads_kv = in.key.size(1), p.seqlen_k = in.key.size(2);
  const int64_t head_dim = in.query.size(3);
  if (head_dim < 1 || head_dim > kMaxHeadDim) fail("query", shape_of(in.query), "a head_dim of 1 to 256");
  p.head_dim = static_cast<int>(head_dim);
  p.scale = static_cast<float>(scale);
  check_shape(in.key, "key", {p.batch, p.heads_kv, p.seqlen_k, head_dim});
  check_shape(in.value, "value", {p.batch, p.heads_kv, p.seqlen_k, head_dim});
  if (p.heads_kv == 0 ? p.heads_q != 0 : p.heads_q % p.heads_kv != 0)
    fail("query", shape_of(in.query), "a multiple of key's heads");
  if (p.seqlen_q > INT32_MAX || p.seqlen_k > INT32_MAX) fail("query", shape_of(in.query), "lengths below 2^31");

  in.query = unit_stride(in.query), in.key = unit_stride(in.key), in.value = unit_stride(in.value);
  p.q = view(in.query), p.k = view(in.key), p.v = view(in.value);
  p.queries = selection(in.query_indices, in.query_counts, "query_mask", p.batch, p.heads_q, p.seqlen_q);
  p.keys = selection(in.key_indices, in.key_counts, "key_mask", p.batch, p.heads_kv, p.seqlen_k);
  if (in.key_bias.has_value()) {
    check_cpu(*in.key_bias, "key_bias");
    check_dtype(*in.key_bias, ScalarType::Float, "key_bias", "float32");
    check_shape(*in.key_bias, "key_bias", {p.batch, p.heads_kv, p.seqlen_k});
    p.key_bias = row_view(*in.key_bias);
  }
}

std::tuple<Tensor, Tensor> forward(ForwardParams& p, const Tensor& query) {
  Tensor out = new_like(query);
  Tensor lse = torch::stable::new_empty(query, {p.batch, p.heads_q, p.seqlen_q}, ScalarType::Float);
  p.out = view(out), p.lse = row_view(lse);
  launch_cpu_fwd(p, torch_threads());
  return {out, lse};
}

void check_mask(const Tensor& mask, const char* name) {
  check_cpu(mask, name);
  check_dtype(mask, ScalarType::Bool, name, "bool");
  check_shape(mask, name, {-1, -1, -1});
  if (mask.size(2) > INT32_MAX) fail(name, shape_of(mask), "a length below 2^31");
}

SelectParams select_params(const Tensor& mask, int32_t* indices, int32_t* counts) {
  return {static_cast<const bool*>(mask.data_ptr()),
          mask.stride(0),
          mask.stride(1),
          mask.stride(2),
          mask.size(0),
          mask.size(1),
          mask.size(2),
          indices,
          counts};
}

// The selected tokens of a mask, listed for the length of one call.
class ListedMask {
 public:
  ListedMask(const OptionalTensor& mask, const char* name, int64_t batch, int64_t heads, int64_t seqlen)
      : memory_(mask ? check(*mask, name, batch, heads, seqlen) * (seqlen + 1) * 4 : 0) {
    if (!mask) return;
    const int64_t own_batches = mask->size(0), own_heads = mask->size(1);
    auto* counts = reinterpret_cast<int32_t*>(memory_.at(0));
    int32_t* indices = counts + own_batches * own_heads;
    launch_cpu_select_tokens(select_params(*mask, indices, counts), torch_threads());
    const int64_t h = own_heads == 1 ? 0 : 1, b = own_batches == 1 ? 0 : own_heads;
    view = {indices, b * seqlen, h * seqlen, counts, b, h};
  }

  SelectionView view;

 private:
  // The number of lists.
  static int64_t check(const Tensor& mask, const char* name, int64_t batch, int64_t heads, int64_t seqlen) {
    check_mask(mask, name);
    check_shape(mask, name, {batch, heads, -1}, true);
    if (mask.size(2) != seqlen) check_shape(mask, name, {batch, heads, seqlen});
    return mask.size(0) * mask.size(1);
  }

  Workspace memory_;
};

bool same_view(const OptionalTensor& a, const OptionalTensor& b) {
  if (!a || !b || a->data_ptr() != b->data_ptr() || a->dim() != b->dim()) return false;
  for (int64_t i = 0; i < a->dim(); ++i)
    if (a->size(i) != b->size(i) || a->stride(i) != b->stride(i)) return false;
  return true;
}

}  // namespace

std::tuple<Tensor, Tensor> cpu_select_tokens(const Tensor& mask) {
  check_mask(mask, "mask");
  const int64_t b = mask.size(0), h = mask.size(1), n = mask.size(2);
  Tensor indices = torch::stable::new_empty(mask, {b, h, n}, ScalarType::Int);
  Tensor counts = torch::stable::new_empty(mask, {b, h}, ScalarType::Int);
  launch_cpu_select_tokens(
      select_params(mask, static_cast<int32_t*>(indices.data_ptr()), static_cast<int32_t*>(counts.data_ptr())),
      torch_threads());
  return {indices, counts};
}

std::tuple<Tensor, Tensor> cpu_fwd(const Tensor& query, const Tensor& key, const Tensor& value,
                                   const OptionalTensor& query_indices, const OptionalTensor& query_counts,
                                   const OptionalTensor& key_indices, const OptionalTensor& key_counts,
                                   const OptionalTensor& key_bias, double scale) {
  Inputs in{query, key, value, query_indices, query_counts, key_indices, key_counts, key_bias};
  ForwardParams p;
  fill_inputs(in, scale, p);
  return forward(p, query);
}

std::tuple<Tensor, Tensor> cpu_infer(const Tensor& query, const Tensor& key, const Tensor& value,
                                     const OptionalTensor& query_mask, const OptionalTensor& key_mask,
                                     const OptionalTensor& key_bias, double scale) {
  Inputs in{query, key, value, {}, {}, {}, {}, key_bias};
  ForwardParams p;
  fill_inputs(in, scale, p);
  const ListedMask keys(key_mask, "key_mask", p.batch, p.heads_kv, p.seqlen_k);
  const bool shared = same_view(query_mask, key_mask) && p.heads_q == p.heads_kv && p.seqlen_q == p.seqlen_k;
  const ListedMask queries(shared ? OptionalTensor() : query_mask, "query_mask", p.batch, p.heads_q, p.seqlen_q);
  p.keys = keys.view, p.queries = shared ? keys.view : queries.view;
  return forward(p, query);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> cpu_bwd(
    const Tensor& dout, const OptionalTensor& dlse, const Tensor& query, const Tensor& key, const Tensor& value,
    const Tensor& out, const Tensor& lse, const OptionalTensor& query_indices, const OptionalTensor& query_counts,
    const OptionalTensor& key_indices, const OptionalTensor& key_counts, const OptionalTensor& key_bias,
    double scale) {
  Inputs in{query, key, value, query_indices, query_counts, key_indices, key_counts, key_bias};
  BackwardParams p;
  fill_inputs(in, scale, p);
  for (const auto& [t, name] : {std::pair{&dout, "dout"}, {&out, "out"}}) {
    check_cpu(*t, name);
    if (t->scalar_type() != query.scalar_type()) fail(name, "another dtype", "the dtype of query");
    check_shape(*t, name, {p.batch, p.heads_q, p.seqlen_q, p.head_dim});
  }
  check_cpu(lse, "lse");
  check_dtype(lse, ScalarType::Float, "lse", "float32");
  check_shape(lse, "lse", {p.batch, p.heads_q, p.seqlen_q});
  const Tensor own_dout = unit_stride(dout), own_out = unit_stride(out), own_lse = unit_stride(lse);
  p.dout = view(own_dout), p.out = view(own_out), p.lse = row_view(own_lse);
  if (dlse.has_value()) {
    check_cpu(*dlse, "dlse");
    check_dtype(*dlse, ScalarType::Float, "dlse", "float32");
    check_shape(*dlse, "dlse", {p.batch, p.heads_q, p.seqlen_q});
    p.dlse = row_view(*dlse);
  }
  Tensor dq = new_like(query), dk = new_like(key), dv = new_like(value);
  Tensor dbias = key_bias.has_value() ? torch::stable::new_empty(*key_bias, {p.batch, p.heads_kv, p.seqlen_k})
                                      : torch::stable::new_empty(query, {0}, ScalarType::Float);
  p.dq = view(dq), p.dk = view(dk), p.dv = view(dv);
  if (key_bias.has_value()) p.dbias = row_view(dbias);
  launch_cpu_bwd(p, torch_threads());
  return {dq, dk, dv, dbias};
}

STABLE_TORCH_LIBRARY_IMPL(maskattn, CPU, m) {
  m.impl("cpu_select_tokens", TORCH_BOX(&cpu_select_tokens));
  m.impl("cpu_fwd", TORCH_BOX(&cpu_fwd));
  m.impl("cpu_infer", TORCH_BOX(&cpu_infer));
  m.impl("cpu_bwd", TORCH_BOX(&cpu_bwd));
}

}  // namespace maskattn
