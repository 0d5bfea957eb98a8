// SPDX-License-Identifier: BSD-3-Clause
//
// The CPU ops as torch sees them: check, allocate, fill the parameter struct, launch.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <new>
#include <optional>
#include <tuple>

#include "../arguments.h"
#include "../schemas.h"
#include "params.h"
#include "schedule.h"

namespace maskattn {
namespace {

ThreadPool torch_threads() {
  return {static_cast<int>(torch::stable::get_num_threads()),
          [](int64_t n, void (*work)(void*, int64_t), void* ctx) {
            torch::stable::parallel_for(0, n, 1, [&](int64_t begin, int64_t end) {
              for (int64_t i = begin; i < end; ++i) work(ctx, i);
            });
          }};
}

void fill_cpu_inputs(Inputs& in, double scale, ForwardParams& p) {
  fill_inputs(in, scale, p, check_cpu);
  p.q = view(in.query), p.k = view(in.key), p.v = view(in.value);
}

std::tuple<Tensor, Tensor> forward(ForwardParams& p, const Tensor& query) {
  Tensor out = new_like(query);
  Tensor lse = allocate(query, {p.batch, p.heads_q, p.seqlen_q}, ScalarType::Float);
  p.out = view(out), p.lse = row_view(lse);
  launch_cpu_fwd(p, torch_threads());
  return {out, lse};
}

// The selected tokens of a mask, listed for the length of one call.
class ListedMask {
 public:
  ListedMask(const OptionalTensor& mask, const char* name, const Tensor& query, int64_t batch, int64_t heads,
             int64_t seqlen)
      : memory_(mask ? bytes(*mask, name, query, batch, heads, seqlen) : 0) {
    if (!mask || mask->numel() == 0) return;
    const int64_t own_batches = mask->size(0), own_heads = mask->size(1);
    auto* counts = reinterpret_cast<int32_t*>(memory_.at(0));
    int32_t* indices = counts + own_batches * own_heads;
    launch_cpu_select_tokens(select_params(*mask, indices, counts), torch_threads());
    const int64_t h = own_heads == 1 ? 0 : 1, b = own_batches == 1 ? 0 : own_heads;
    view = {indices, b * seqlen, h * seqlen, counts, b, h};
  }

  SelectionView view;

 private:
  static int64_t bytes(const Tensor& mask, const char* name, const Tensor& query, int64_t batch, int64_t heads,
                       int64_t seqlen) {
    check_mask_of(mask, name, query, batch, heads, seqlen, check_cpu);
    if (mask.numel() == 0) return 0;
    const int64_t lists = mask.size(0) * mask.size(1);
    if (lists > INT64_MAX / (4 * (seqlen + 1))) throw std::bad_alloc();  // an expanded mask can be that large
    return lists * (seqlen + 1) * 4;
  }

  Workspace memory_;
};

}  // namespace

std::tuple<Tensor, Tensor> cpu_select_tokens(const Tensor& mask) {
  check_mask(mask, "mask", mask, check_cpu);
  const int64_t b = mask.size(0), h = mask.size(1), n = mask.size(2);
  Tensor indices = allocate(mask, {b, h, n}, ScalarType::Int);
  Tensor counts = allocate(mask, {b, h}, ScalarType::Int);
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
  fill_cpu_inputs(in, scale, p);
  return forward(p, query);
}

std::tuple<Tensor, Tensor> cpu_infer(const Tensor& query, const Tensor& key, const Tensor& value,
                                     const OptionalTensor& query_mask, const OptionalTensor& key_mask,
                                     const OptionalTensor& key_bias, double scale) {
  Inputs in{query, key, value, {}, {}, {}, {}, key_bias};
  ForwardParams p;
  fill_cpu_inputs(in, scale, p);
  const ListedMask keys(key_mask, "key_mask", query, p.batch, p.heads_kv, p.seqlen_k);
  const bool shared = same_view(query_mask, key_mask) && p.heads_q == p.heads_kv && p.seqlen_q == p.seqlen_k;
  const ListedMask queries(shared ? OptionalTensor() : query_mask, "query_mask", query, p.batch, p.heads_q,
                           p.seqlen_q);
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
  fill_cpu_inputs(in, scale, p);
  BackwardInputs more{dout, out, lse, dlse};
  fill_backward_inputs(more, query, p, check_cpu);
  p.dout = view(more.dout), p.out = view(more.out);
  Tensor dq = new_like(query), dk = new_like(key), dv = new_like(value);
  Tensor dbias = key_bias.has_value() ? allocate(*key_bias, {p.batch, p.heads_kv, p.seqlen_k}, ScalarType::Float)
                                      : allocate(query, {0}, ScalarType::Float);
  p.dq = view(dq), p.dk = view(dk), p.dv = view(dv);
  if (key_bias.has_value()) p.dbias = row_view(dbias);
  launch_cpu_bwd(p, torch_threads());
  return {dq, dk, dv, dbias};
}

// An op that tells of missing workspace as it does of missing tensors.
template <auto op>
struct Told;
template <class Result, class... Args, Result (*op)(Args...)>
struct Told<op> {
  static Result call(Args... args) {
    try {
      return op(args...);
    } catch (const std::bad_alloc&) {
      throw no_memory("the workspace", false);
    }
  }
};

STABLE_TORCH_LIBRARY(maskattn, m) {
  m.def("cpu_select_tokens" MASKATTN_SELECT_TOKENS_SCHEMA);
  m.def("cpu_fwd" MASKATTN_FWD_SCHEMA);
  m.def("cpu_infer" MASKATTN_INFER_SCHEMA);
  m.def("cpu_bwd" MASKATTN_BWD_SCHEMA);
}

STABLE_TORCH_LIBRARY_IMPL(maskattn, CPU, m) {
  m.impl("cpu_select_tokens", TORCH_BOX(&Told<&cpu_select_tokens>::call));
  m.impl("cpu_fwd", TORCH_BOX(&Told<&cpu_fwd>::call));
  m.impl("cpu_infer", TORCH_BOX(&Told<&cpu_infer>::call));
  m.impl("cpu_bwd", TORCH_BOX(&Told<&cpu_bwd>::call));
}

}  // namespace maskattn
