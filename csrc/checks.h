// SPDX-License-Identifier: BSD-3-Clause
//
// Checks of op arguments. masked_attention() has rejected bad calls before; these checks keep a direct call of
// torch.ops.maskattn.* from reading or writing outside its tensors.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cctype>
#include <initializer_list>
#include <stdexcept>
#include <string>

namespace maskattn {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline std::string shape_of(const Tensor& t) {
  std::string text = "(";
  for (int64_t d = 0; d < t.dim(); ++d) text += (d ? ", " : "") + std::to_string(t.size(d));
  return text + ")";
}

// A dtype as Python writes it: torch.float32.
inline std::string dtype_name(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Byte:
      return "torch.uint8";
    case ScalarType::Char:
      return "torch.int8";
    case ScalarType::Short:
      return "torch.int16";
    case ScalarType::Int:
      return "torch.int32";
    case ScalarType::Long:
      return "torch.int64";
    case ScalarType::Half:
      return "torch.float16";
    case ScalarType::Float:
      return "torch.float32";
    case ScalarType::Double:
      return "torch.float64";
    case ScalarType::ComplexHalf:
      return "torch.complex32";
    case ScalarType::ComplexFloat:
      return "torch.complex64";
    case ScalarType::ComplexDouble:
      return "torch.complex128";
    default: {  // the names of the others differ in capitals only
      std::string name = torch::headeronly::toString(dtype);
      for (char& c : name) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
      return "torch." + name;
    }
  }
}

inline const char* device_of(const Tensor& t) {
  return t.is_cpu() ? "cpu" : t.is_cuda() ? "cuda" : "another device";
}

[[noreturn]] inline void reject(const char* name, const std::string& expected, const std::string& got) {
  throw std::runtime_error(std::string(name) + ": expected " + expected + ", got " + got);
}

inline void check_cpu(const Tensor& t, const char* name) {
  if (!t.is_cpu()) reject(name, "device cpu", device_of(t));
}

inline void check_dtype(const Tensor& t, ScalarType dtype, const char* name) {
  if (t.scalar_type() != dtype) reject(name, "dtype " + dtype_name(dtype), dtype_name(t.scalar_type()));
}

inline void check_same_dtype(const Tensor& t, const Tensor& query, const char* name) {
  const ScalarType dtype = query.scalar_type();
  if (t.scalar_type() != dtype) reject(name, "query's dtype " + dtype_name(dtype), dtype_name(t.scalar_type()));
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
  reject(name, "shape " + expected + ")", shape_of(t));
}

}  // namespace maskattn
