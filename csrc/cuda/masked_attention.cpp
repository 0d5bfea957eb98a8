// SPDX-License-Identifier: BSD-3-Clause
//
// The CUDA ops as torch sees them: check, allocate, fill the parameter struct, launch. Nothing waits for the
// device, and nothing is allocated but results and one workspace, so that calls can be captured in a CUDA graph.
#include <torch/csrc/stable/library.h>

#include <string>
#include <tuple>

#include "../arguments.h"
#include "../schemas.h"
#include "cute.h"
#include "gpu.h"
#include "params.h"

namespace maskattn {
namespace {

// A view that also says whether all rows can be moved in chunks of 16 bytes.
GpuView gpu_view(const Tensor& t) {
  const int64_t bytes = t.scalar_type() == ScalarType::Float ? 4 : 2;
  GpuView v{view(t)};
  v.aligned = reinterpret_cast<uintptr_t>(t.data_ptr()) % 16 == 0 && t.size(3) * bytes % 16 == 0;
  for (int64_t d = 0; d < 3; ++d) v.aligned &= t.size(d) == 1 || t.stride(d) * bytes % 16 == 0;
  return v;
}

void fill_gpu_inputs(Inputs& in, double scale, CudaParams& p) {
  fill_inputs(in, scale, p, check_gpu);
  p.q = gpu_view(in.query), p.k = gpu_view(in.key), p.v = gpu_view(in.value);
}

void check_launch(int error, const char* op) {
  if (error != 0) throw std::runtime_error(std::string(op) + ": " + error_text(error));
}

Tensor filled(Tensor t, double value) {
  torch::stable::fill_(t, value);
  return t;
}

MaskView view_of(const OptionalTensor& mask, const char* name, const Tensor& query, int64_t batch, int64_t heads,
                 int64_t seqlen) {
  if (!mask) return {};
  const PerToken values = mask_of(*mask, name, query, batch, heads, seqlen, check_gpu);
  return {static_cast<const bool*>(values.data), values.broadcast_b(), values.broadcast_h(), values.stride_n};
}

std::tuple<Tensor, Tensor> forward(const Tensor& query, CudaForwardParams& p) {
  const OnDevice device(query);
  Tensor out = new_like(query);
  Tensor lse = allocate(query, {p.batch, p.heads_q, p.seqlen_q}, ScalarType::Float);
  if (p.batch * p.heads_q * p.seqlen_q == 0 || p.seqlen_k == 0) return {filled(out, 0.0), filled(lse, -INFINITY)};
  p.out = gpu_view(out), p.lse = row_view(lse);
  if (cute_is_asked()) {
    check_launch(launch_cute_fwd(choose_cute(p, device.chip()), p, device.stream()), "fwd");
    return {out, lse};
  }
  p.splits = cuda_fwd_splits(p, device.chip());
  Tensor workspace = allocate(query, {lay_out_cuda_fwd(p, nullptr)}, ScalarType::Byte);
  lay_out_cuda_fwd(p, workspace.data_ptr());
  check_launch(launch_cuda_fwd(p, device.stream()), "fwd");
  return {out, lse};
}

// The tokens of a mask as lists: indices and counts.
std::tuple<Tensor, Tensor> listed(const PerToken& mask, const Tensor& like) {
  const OnDevice device(like);
  Tensor indices = allocate(like, {mask.batches, mask.heads, mask.seqlen}, ScalarType::Int);
  Tensor counts = allocate(like, {mask.batches, mask.heads}, ScalarType::Int);
  const auto p =
      select_params(mask, static_cast<int32_t*>(indices.data_ptr()), static_cast<int32_t*>(counts.data_ptr()));
  check_launch(launch_cuda_select_tokens(p, device.stream()), "select_tokens");
  return {indices, counts};
}

}  // namespace

std::tuple<Tensor, Tensor> cuda_select_tokens(const Tensor& mask) {
  return listed(mask_to_list(mask, check_gpu), mask);
}

std::tuple<Tensor, Tensor> cuda_fwd(const Tensor& query, const Tensor& key, const Tensor& value,
                                    const OptionalTensor& query_indices, const OptionalTensor& query_counts,
                                    const OptionalTensor& key_indices, const OptionalTensor& key_counts,
                                    const OptionalTensor& key_bias, double scale) {
  Inputs in{query, key, value, query_indices, query_counts, key_indices, key_counts, key_bias};
  CudaForwardParams p;
  fill_gpu_inputs(in, scale, p);
  return forward(query, p);
}

std::tuple<Tensor, Tensor> cuda_infer(const Tensor& query, const Tensor& key, const Tensor& value,
                                      const OptionalTensor& query_mask, const OptionalTensor& key_mask,
                                      const OptionalTensor& key_bias, double scale) {
  Inputs in{query, key, value, {}, {}, {}, {}, {}};
  CudaForwardParams p;
  fill_gpu_inputs(in, scale, p);
  if (key_bias) p.key_bias = bias_of(*key_bias, query, p.batch, p.heads_kv, p.seqlen_k, check_gpu);
  const MaskView queries = view_of(query_mask, "query_mask", query, p.batch, p.heads_q, p.seqlen_q);
  const MaskView keys = view_of(key_mask, "key_mask", query, p.batch, p.heads_kv, p.seqlen_k);
  if (p.seqlen_q <= kShort && p.seqlen_k <= kShort && !cute_is_asked()) {
    p.query_mask = queries, p.key_mask = keys;
    return forward(query, p);
  }
  OptionalTensor lists[2][2];  // of queries, of keys: indices and counts
  if (key_mask) std::tie(lists[1][0], lists[1][1]) = listed(PerToken(*key_mask), query);
  if (same_view(query_mask, key_mask))
    lists[0][0] = lists[1][0], lists[0][1] = lists[1][1];
  else if (query_mask)
    std::tie(lists[0][0], lists[0][1]) = listed(PerToken(*query_mask), query);
  p.queries = selection(lists[0][0], lists[0][1], "query_mask", p.batch, p.heads_q, p.seqlen_q);
  p.keys = selection(lists[1][0], lists[1][1], "key_mask", p.batch, p.heads_kv, p.seqlen_k);
  return forward(query, p);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> cuda_bwd(
    const Tensor& dout, const OptionalTensor& dlse, const Tensor& query, const Tensor& key, const Tensor& value,
    const Tensor& out, const Tensor& lse, const OptionalTensor& query_indices, const OptionalTensor& query_counts,
    const OptionalTensor& key_indices, const OptionalTensor& key_counts, const OptionalTensor& key_bias,
    double scale) {
  Inputs in{query, key, value, query_indices, query_counts, key_indices, key_counts, key_bias};
  CudaBackwardParams p;
  fill_gpu_inputs(in, scale, p);
  const OnDevice device(query);
  BackwardInputs more{dout, out, torch::stable::contiguous(lse), dlse};
  fill_backward_inputs(more, query, p, check_gpu);
  Tensor dq = new_like(query), dk = new_like(key), dv = new_like(value);
  Tensor dbias = key_bias.has_value() ? allocate(*key_bias, {p.batch, p.heads_kv, p.seqlen_k}, ScalarType::Float)
                                      : allocate(query, {0}, ScalarType::Float);
  if (p.batch * p.heads_q * p.seqlen_q == 0 || p.seqlen_k == 0)
    return {filled(dq, 0.0), filled(dk, 0.0), filled(dv, 0.0), filled(dbias, 0.0)};
  p.dout = gpu_view(more.dout), p.out = gpu_view(more.out);
  p.dq = gpu_view(dq), p.dk = gpu_view(dk), p.dv = gpu_view(dv);
  if (key_bias.has_value()) p.dbias = row_view(dbias);
  p.splits = cuda_bwd_splits(p, device.chip());
  Tensor workspace = allocate(query, {lay_out_cuda_bwd(p, nullptr)}, ScalarType::Byte);
  lay_out_cuda_bwd(p, workspace.data_ptr());
  check_launch(launch_cuda_bwd(p, device.stream()), "bwd");
  return {dq, dk, dv, dbias};
}

STABLE_TORCH_LIBRARY_FRAGMENT(maskattn, m) {
  m.def(MASKATTN_OP "select_tokens" MASKATTN_SELECT_TOKENS_SCHEMA);
  m.def(MASKATTN_OP "fwd" MASKATTN_FWD_SCHEMA);
  m.def(MASKATTN_OP "bwd" MASKATTN_BWD_SCHEMA);
  m.def(MASKATTN_OP "infer" MASKATTN_INFER_SCHEMA);
}

STABLE_TORCH_LIBRARY_IMPL(maskattn, MASKATTN_DISPATCH_KEY, m) {
  m.impl(MASKATTN_OP "select_tokens", TORCH_BOX(&cuda_select_tokens));
  m.impl(MASKATTN_OP "fwd", TORCH_BOX(&cuda_fwd));
  m.impl(MASKATTN_OP "bwd", TORCH_BOX(&cuda_bwd));
  m.impl(MASKATTN_OP "infer", TORCH_BOX(&cuda_infer));
}

}  // namespace maskattn
