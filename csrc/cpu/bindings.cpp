// SPDX-License-Identifier: BSD-3-Clause
//
// The schemas of the CPU ops, and what the Python side asks about this build. Importing the module
// registers the ops; fakes and autograd formulas are in maskattn_kernels/ops.py.
#include <pybind11/pybind11.h>
#include <torch/csrc/stable/library.h>

#include "../schemas.h"
#include "params.h"

STABLE_TORCH_LIBRARY(maskattn, m) {
  m.def("cpu_select_tokens" MASKATTN_SELECT_TOKENS_SCHEMA);
  m.def("cpu_fwd" MASKATTN_FWD_SCHEMA);
  m.def("cpu_infer" MASKATTN_INFER_SCHEMA);
  m.def("cpu_bwd" MASKATTN_BWD_SCHEMA);
}

PYBIND11_MODULE(_C, m) {
  m.doc() = "Compiled kernels of maskattn_kernels: build facts only, the ops live in torch.ops.maskattn.";
  m.def(
      "build_info",
      [] {
        pybind11::dict facts;
        facts["compiler"] = MASKATTN_COMPILER;
        facts["torch"] = MASKATTN_TORCH;
        facts["tiers"] = MASKATTN_TIERS;
        facts["arch"] = MASKATTN_ARCH;
        return facts;
      },
      "What was compiled: compiler, torch version built against, CPU tiers, architecture.");
  m.def("cpu_tier", &maskattn::cpu_tier, "The instruction-set tier a call would use now; see MASKATTN_CPU_TIER.");
}
