// SPDX-License-Identifier: BSD-3-Clause
//
// The highest scores of each row as a mask: exactly as many as are asked for, and of those that equal the lowest
// selected one the first ones. One task per row.
#include <algorithm>
#include <bit>
#include <functional>

#include "schedule.h"

namespace maskattn {
namespace {

// Integers in the order of the floats; NaN has a place too, so that there is an order.
uint32_t ordered(float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  return bits ^ (bits >> 31 ? 0xffffffffu : 0x80000000u);
}

float value_of(uint32_t key) { return std::bit_cast<float>(key ^ (key >> 31 ? 0x80000000u : 0xffffffffu)); }

}  // namespace

void launch_cpu_select_highest(const HighestParams& p, const ThreadPool& pool) {
  run_tasks(pool, p.rows, 8 * p.rows * p.length, p.length * int64_t{sizeof(uint32_t)}, [&](int64_t r, char* own) {
    const float* scores = p.scores + r * p.stride_row;
    const auto keys = reinterpret_cast<uint32_t*>(own);
    for (int64_t n = 0; n < p.length; ++n) keys[n] = ordered(scores[n]);
    std::nth_element(keys, keys + p.count - 1, keys + p.length, std::greater<>());
    const float border = value_of(keys[p.count - 1]);
    bool* mask = p.mask + r * p.length;
    int64_t selected = 0;
    for (int64_t n = 0; n < p.length; ++n) {
      mask[n] = scores[n] >= border;
      selected += mask[n];
    }
    for (int64_t n = p.length; n > 0 && selected > p.count;)  // more are equal than there is room for
      if (scores[--n] == border) mask[n] = false, --selected;
    p.borders[r] = border;
  });
}

}  // namespace maskattn
