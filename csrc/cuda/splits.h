// SPDX-License-Identifier: BSD-3-Clause
//
// Among how many blocks the tokens that stream by a tile are shared, where too few tiles stay to fill the chip.
// Decided from sizes alone, never from the masks, so that results are repeatable and nothing waits for the device.
#pragma once

#include <cstdint>

namespace maskattn {

constexpr int kMaxSplits = 16;
constexpr int kTilesOfASplit = 4;  // at least: with fewer the second launch costs more than it saves
constexpr int kLikelyKeep = 4;     // of so many tokens under a mask one is expected to be selected
constexpr int kCombineThreads = 128;

struct Chip {
  int processors = 0;
  int shared_memory = 0;  // bytes of one processor
  int capability = 0;     // 90: compute capability 9.0
};

// How many blocks of a kernel the chip runs at a time, at least. Launch bounds leave registers for two on a
// processor; its shared memory, of which a block takes 1 KiB more than its own, may have room for one only.
inline int64_t blocks_at_a_time(const Chip& chip, int64_t shared_bytes) {
  return int64_t{chip.processors} * (chip.shared_memory / (shared_bytes + 1024) < 2 ? 1 : 2);
}

// `tiles` stream by each of `blocks`, of which the chip runs `places` at a time.
inline int choose_splits(int64_t blocks, int64_t places, int64_t tiles) {
  const int64_t by_chip = places / (blocks > 0 ? blocks : 1), by_tiles = tiles / kTilesOfASplit;
  const int64_t wanted = by_chip < by_tiles ? by_chip : by_tiles;
  return static_cast<int>(wanted < 1 ? 1 : wanted > kMaxSplits ? kMaxSplits : wanted);
}

}  // namespace maskattn
