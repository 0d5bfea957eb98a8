// SPDX-License-Identifier: BSD-3-Clause
#include "build_info.h"

#include <stdexcept>
#include <string>

#include "params.h"

const char* maskattn_cpu_build_info() {
  return "compiler: " MASKATTN_COMPILER "\ntorch: " MASKATTN_TORCH "\ntiers: " MASKATTN_TIERS
         "\narch: " MASKATTN_ARCH;
}

const char* maskattn_cpu_tier(const char** error) {
  static thread_local std::string text;
  try {
    return maskattn::cpu_tier();
  } catch (const std::runtime_error& impossible) {
    text = impossible.what();
    *error = text.c_str();
    return nullptr;
  }
}
