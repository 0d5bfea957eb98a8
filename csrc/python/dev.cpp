// SPDX-License-Identifier: BSD-3-Clause
//
// maskattn_kernels._dev: the CPU library's own words in Python, for developers. Nothing needs it at run time, and
// no wheel holds it: it is the only part of the build that depends on Python's headers.
#include <pybind11/pybind11.h>

#include <sstream>
#include <stdexcept>
#include <string>

#include "../cpu/build_info.h"

PYBIND11_MODULE(_dev, m) {
  m.doc() = "What a developer asks the C++ library: build_info(), cpu_tier().";
  m.def(
      "build_info",
      [] {
        pybind11::dict facts;
        std::istringstream lines(maskattn_cpu_build_info());
        for (std::string line; std::getline(lines, line);) {
          const size_t colon = line.find(": ");
          facts[line.substr(0, colon).c_str()] = line.substr(colon + 2);
        }
        return facts;
      },
      "What was compiled: compiler, torch version built against, CPU tiers, architecture.");
  m.def(
      "cpu_tier",
      [] {
        const char* error = nullptr;
        const char* tier = maskattn_cpu_tier(&error);
        if (tier == nullptr) throw std::runtime_error(error);
        return std::string(tier);
      },
      "The instruction-set tier a call would use now; see MASKATTN_CPU_TIER.");
}
