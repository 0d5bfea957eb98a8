// SPDX-License-Identifier: BSD-3-Clause
//
// Checks of op arguments. masked_attention() reports bad calls in words before it gets here; these keep a direct
// call of torch.ops.maskattn.* from reading or writing outside its tensors.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <initializer_list>
#include <stdexcept>
#include <string>

namespace maskattn {

using torch::stable::Tensor;

inline std::string shape_of(const Tensor& t) {
  std::string text = "(";
  for (int64_t d = 0; d < t.dim(); ++d) text += (d ? ", " : "") + std::to_string(t.size(d));
  return text + ")";
}

inline void fail(const char* name, const std::string& got, const std::string& expected) {
  throw std::runtime_error(std::string(name) + ": got " + got + ", expected " + expected);
}

inline void check_cpu(const Tensor& t, const char* name) {
  if (!t.is_cpu()) fail(name, "a tensor on another device", "one on the CPU");
}

inline void check_dtype(const Tensor& t, torch::headeronly::ScalarType dtype, const char* name,
                        const char* dtype_name) {
  if (t.scalar_type() != dtype) fail(name, "another dtype", dtype_name);
}

// sizes[d] < 0 accepts any size; with `broadcast`, a size of 1 is accepted too.
inline void check_shape(const Tensor& t, const char* name, std::initializer_list<int64_t> sizes,
                        bool broadcast = false) {
  bool ok = t.dim() == static_cast<int64_t>(sizes.size());
  for (size_t d = 0; ok && d < sizes.size(); ++d) {
    const int64_t expected = sizes.begin()[d], got = t.size(static_cast<int64_t>(d));
    ok = expected < 0 || got == expected || (broadcast && got == 1);
  }
  if (ok) return;
  std::string expected;
  for (const int64_t size : sizes)
    expected += (expected.empty() ? "(" : ", ") + (size < 0 ? std::string("*") : std::to_string(size));
  fail(name, shape_of(t), expected + ")");
}

}  // namespace maskattn
