// SPDX-License-Identifier: BSD-3-Clause
//
// Functions of integers for drivers and tiers. They have internal linkage: of an inline function that several
// objects emit the linker keeps one copy, which may use instructions that this CPU lacks. std::min is such a
// function, so tiers call min_of.
#pragma once

#include <cstdint>

namespace maskattn {
namespace {

constexpr int64_t min_of(int64_t a, int64_t b) { return a < b ? a : b; }
constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t round_up(int64_t n, int64_t multiple) { return ceil_div(n, multiple) * multiple; }

}  // namespace
}  // namespace maskattn
