// SPDX-License-Identifier: BSD-3-Clause
//
// The highest scores of each row as a mask: exactly as many as are asked for, and of those that equal the lowest
// selected one the first ones. One task per row.
#include <bit>

#include "schedule.h"

namespace maskattn {
namespace {

// Integers in the order of the floats; NaN has a place too, so that there is an order.
uint32_t ordered(float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  return bits ^ (bits >> 31 ? 0xffffffffu : 0x80000000u);
}

float value_of(uint32_t key) { return std::bit_cast<float>(key ^ (key >> 31 ? 0x80000000u : 0xffffffffu)); }

// The count-th largest key: its digits, the highest first, by counting the keys that begin with those found so
// far. No branch depends on how keys are ordered, unlike in std::nth_element.
uint32_t nth_largest(const uint32_t* keys, int64_t length, int64_t count) {
  constexpr uint32_t kDigit = 0x7ff;
  uint32_t found = 0, known = 0;
  for (int shift : {21, 10, 0}) {  // the last digit begins with a bit that is known
    int64_t counts[kDigit + 1] = {};
    for (int64_t n = 0; n < length; ++n)
      if ((keys[n] & known) == found) ++counts[keys[n] >> shift & kDigit];
    uint32_t digit = kDigit;
    while (counts[digit] < count) count -= counts[digit--];
    found |= digit << shift;
    known |= kDigit << shift;
  }
  return found;
}

}  // namespace

void launch_cpu_select_highest(const HighestParams& p, const ThreadPool& pool) {
  run_tasks(pool, p.rows, 8 * p.rows * p.length, p.length * int64_t{sizeof(uint32_t)}, [&](int64_t r, char* own) {
    const float* scores = p.scores + r * p.stride_row;
    const auto keys = reinterpret_cast<uint32_t*>(own);
    for (int64_t n = 0; n < p.length; ++n) keys[n] = ordered(scores[n]);
    const float border = value_of(nth_largest(keys, p.length, p.count));
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
