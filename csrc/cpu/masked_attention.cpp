// SPDX-License-Identifier: BSD-3-Clause
//
// The CPU ops as torch sees them: check, allocate, fill the parameter struct, launch.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
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

// Adds the rows (B, H, N) of all heads to those of a bias that broadcasts.
void add_broadcast_rows(const float* rows, const PerToken& bias, int64_t batch, int64_t heads, float* sums) {
  std::fill_n(sums, bias.batches * bias.heads * bias.seqlen, 0.0f);
  for (int64_t b = 0; b < batch; ++b)
    for (int64_t h = 0; h < heads; ++h, rows += bias.seqlen) {
      float* sum = sums + ((bias.batches == 1 ? 0 : b) * bias.heads + (bias.heads == 1 ? 0 : h)) * bias.seqlen;
      for (int64_t n = 0; n < bias.seqlen; ++n) sum[n] += rows[n];
    }
}

std::tuple<Tensor, Tensor, Tensor, Tensor> backward(BackwardParams& p, BackwardInputs more, const Tensor& query,
                                                    const Tensor& key, const Tensor& value,
                                                    const OptionalTensor& key_bias) {
  fill_backward_inputs(more, query, p, check_cpu);
  p.dout = view(more.dout), p.out = view(more.out);
  Tensor dq = new_like(query), dk = new_like(key), dv = new_like(value);
  p.dq = view(dq), p.dk = view(dk), p.dv = view(dv);
  if (!key_bias) {
    launch_cpu_bwd(p, torch_threads());
    return {dq, dk, dv, allocate(query, {0}, ScalarType::Float)};
  }
  Tensor dbias = allocate(query, key_bias->sizes(), ScalarType::Float);
  const int64_t values = p.batch * p.heads_kv * p.seqlen_k;
  const bool broadcast = dbias.numel() != values;
  const Workspace rows(broadcast ? values * int64_t{sizeof(float)} : 0);
  auto *sums = static_cast<float*>(dbias.data_ptr()), *of_heads = reinterpret_cast<float*>(rows.at(0));
  p.dbias = {broadcast ? of_heads : sums, p.heads_kv * p.seqlen_k, p.seqlen_k, 1};
  launch_cpu_bwd(p, torch_threads());
  if (broadcast) add_broadcast_rows(of_heads, PerToken(*key_bias), p.batch, p.heads_kv, sums);
  return {dq, dk, dv, dbias};
}

// Lists the selected tokens of a call's masks, for as long as this object lives.
class ListedMasks {
 public:
  ListedMasks(const OptionalTensor& query_mask, const OptionalTensor& key_mask, const Tensor& query,
              ForwardParams& p) {
    p.keys = list(keys_, key_mask, "key_mask", query, p.batch, p.heads_kv, p.seqlen_k);
    const bool shared = same_view(query_mask, key_mask) && p.heads_q == p.heads_kv && p.seqlen_q == p.seqlen_k;
    p.queries = shared ? p.keys : list(queries_, query_mask, "query_mask", query, p.batch, p.heads_q, p.seqlen_q);
  }

 private:
  static SelectionView list(std::optional<Workspace>& memory, const OptionalTensor& mask, const char* name,
                            const Tensor& query, int64_t batch, int64_t heads, int64_t seqlen) {
    if (!mask) return {};
    const PerToken values = mask_of(*mask, name, query, batch, heads, seqlen, check_cpu);
    const int64_t lists = values.batches * values.heads;
    if (lists == 0 || seqlen == 0) return {};
    auto* counts = reinterpret_cast<int32_t*>(memory.emplace(Workspace::bytes_of_rows(lists, seqlen + 1)).at(0));
    int32_t* indices = counts + lists;
    launch_cpu_select_tokens(select_params(values, indices, counts), torch_threads());
    const int64_t h = values.heads == 1 ? 0 : 1, b = values.batches == 1 ? 0 : values.heads;
    return {indices, b * seqlen, h * seqlen, counts, b, h};
  }

  std::optional<Workspace> keys_, queries_;
};

}  // namespace

std::tuple<Tensor, Tensor> cpu_select_tokens(const Tensor& mask) {
  const PerToken values = mask_to_list(mask, check_cpu);
  Tensor indices = allocate(mask, {values.batches, values.heads, values.seqlen}, ScalarType::Int);
  Tensor counts = allocate(mask, {values.batches, values.heads}, ScalarType::Int);
  launch_cpu_select_tokens(
      select_params(values, static_cast<int32_t*>(indices.data_ptr()), static_cast<int32_t*>(counts.data_ptr())),
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

std::tuple<Tensor, Tensor, Tensor, Tensor> cpu_bwd(
    const Tensor& dout, const OptionalTensor& dlse, const Tensor& query, const Tensor& key, const Tensor& value,
    const Tensor& out, const Tensor& lse, const OptionalTensor& query_indices, const OptionalTensor& query_counts,
    const OptionalTensor& key_indices, const OptionalTensor& key_counts, const OptionalTensor& key_bias,
    double scale) {
  Inputs in{query, key, value, query_indices, query_counts, key_indices, key_counts, key_bias};
  BackwardParams p;
  fill_cpu_inputs(in, scale, p);
  return backward(p, {dout, out, lse, dlse}, query, key, value, key_bias);
}

std::tuple<Tensor, Tensor> cpu_infer(const Tensor& query, const Tensor& key, const Tensor& value,
                                     const OptionalTensor& query_mask, const OptionalTensor& key_mask,
                                     const OptionalTensor& key_bias, double scale) {
  Inputs in{query, key, value, {}, {}, {}, {}, {}};
  ForwardParams p;
  fill_cpu_inputs(in, scale, p);
  if (key_bias) p.key_bias = bias_of(*key_bias, query, p.batch, p.heads_kv, p.seqlen_k, check_cpu);
  const ListedMasks lists(query_mask, key_mask, query, p);
  return forward(p, query);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> cpu_masks_bwd(const Tensor& dout, const OptionalTensor& dlse,
                                                         const Tensor& query, const Tensor& key,
                                                         const Tensor& value, const Tensor& out, const Tensor& lse,
                                                         const OptionalTensor& query_mask,
                                                         const OptionalTensor& key_mask,
                                                         const OptionalTensor& key_bias, double scale) {
  Inputs in{query, key, value, {}, {}, {}, {}, {}};
  BackwardParams p;
  fill_cpu_inputs(in, scale, p);
  if (key_bias) p.key_bias = bias_of(*key_bias, query, p.batch, p.heads_kv, p.seqlen_k, check_cpu);
  const ListedMasks lists(query_mask, key_mask, query, p);
  return backward(p, {dout, out, lse, dlse}, query, key, value, key_bias);
}

std::tuple<Tensor, Tensor> cpu_select_highest(const Tensor& scores, int64_t count) {
  check_place(scores, "scores", scores, check_cpu);
  check_dtype(scores, ScalarType::Float, "scores");
  check_shape(scores, "scores", {-1, -1});
  const int64_t rows = scores.size(0), length = scores.size(1);
  if (count < 1 || count > length) reject("count", "1 to " + std::to_string(length), std::to_string(count));
  const Tensor unit = unit_stride(scores);
  Tensor mask = allocate(scores, {rows, length}, ScalarType::Bool);
  Tensor borders = allocate(scores, {rows, 1}, ScalarType::Float);
  launch_cpu_select_highest({static_cast<const float*>(unit.data_ptr()), unit.stride(0), rows, length, count,
                             static_cast<bool*>(mask.data_ptr()), static_cast<float*>(borders.data_ptr())},
                            torch_threads());
  return {mask, borders};
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
  m.def("cpu_masks_bwd" MASKATTN_MASKS_BWD_SCHEMA);
  m.def("cpu_select_highest(Tensor scores, int count) -> (Tensor mask, Tensor borders)");
}

STABLE_TORCH_LIBRARY_IMPL(maskattn, CPU, m) {
  m.impl("cpu_select_tokens", TORCH_BOX(&Told<&cpu_select_tokens>::call));
  m.impl("cpu_fwd", TORCH_BOX(&Told<&cpu_fwd>::call));
  m.impl("cpu_infer", TORCH_BOX(&Told<&cpu_infer>::call));
  m.impl("cpu_bwd", TORCH_BOX(&Told<&cpu_bwd>::call));
  m.impl("cpu_masks_bwd", TORCH_BOX(&Told<&cpu_masks_bwd>::call));
  m.impl("cpu_select_highest", TORCH_BOX(&Told<&cpu_select_highest>::call));
}

}  // namespace maskattn
