// SPDX-License-Identifier: BSD-3-Clause
//
// The schemas of the ops of every compiled backend; maskattn_kernels/backends/base.py has the same in Python.
#pragma once

#define MASKATTN_SELECT_TOKENS_SCHEMA "(Tensor mask) -> (Tensor indices, Tensor counts)"
#define MASKATTN_FWD_SCHEMA                                                                \
  "(Tensor query, Tensor key, Tensor value, Tensor? query_indices, Tensor? query_counts, " \
  "Tensor? key_indices, Tensor? key_counts, Tensor? key_bias, float scale) -> (Tensor out, Tensor lse)"
#define MASKATTN_INFER_SCHEMA                                                                                     \
  "(Tensor query, Tensor key, Tensor value, Tensor? query_mask, Tensor? key_mask, Tensor? key_bias, float scale)" \
  " -> (Tensor out, Tensor lse)"
#define MASKATTN_BWD_SCHEMA                                                                                  \
  "(Tensor dout, Tensor? dlse, Tensor query, Tensor key, Tensor value, Tensor out, Tensor lse, "             \
  "Tensor? query_indices, Tensor? query_counts, Tensor? key_indices, Tensor? key_counts, Tensor? key_bias, " \
  "float scale) -> (Tensor dq, Tensor dk, Tensor dv, Tensor dbias)"
#define MASKATTN_MASKS_BWD_SCHEMA                                                                              \
  "(Tensor dout, Tensor? dlse, Tensor query, Tensor key, Tensor value, Tensor out, Tensor lse, "               \
  "Tensor? query_mask, Tensor? key_mask, Tensor? key_bias, float scale) -> (Tensor dq, Tensor dk, Tensor dv, " \
  "Tensor dbias)"
