// SPDX-License-Identifier: BSD-3-Clause
//
// What the Python side asks about the CUDA library. Importing the module registers its ops (masked_attention.cpp).
#include <pybind11/pybind11.h>

PYBIND11_MODULE(_cuda, m) {
  m.doc() = "CUDA kernels of maskattn_kernels: build facts only, the ops live in torch.ops.maskattn.";
  m.def(
      "build_info",
      [] {
        pybind11::dict facts;
        facts["compiler"] = MASKATTN_COMPILER;
        facts["torch"] = MASKATTN_TORCH;
        facts["archs"] = MASKATTN_ARCHS;
        return facts;
      },
      "What was compiled: compiler, torch version built against, GPU architectures.");
}
