// SPDX-License-Identifier: BSD-3-Clause
//
// Which threads read and wrote each 4-byte word of shared memory since the last barrier: an exact race check for
// code that only barriers order.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace maskattn::twin {

// A thread at a point of its program. Two threads are ordered if a block barrier lies between (another epoch), or,
// inside one warp, a warp barrier.
struct Who {
  int thread, warp, epoch, warp_epoch;
};

class Shadow {
 public:
  explicit Shadow(int bytes) : words_(static_cast<size_t>(bytes + 3) / 4) {}

  void read(int64_t word, const Who& who);
  void write(int64_t word, const Who& who);
  void copy_begins(int64_t word, const Who& who);
  void copy_ends(int64_t word, const Who& who);

 private:
  static constexpr int kNobody = -1, kSeveral = -2;

  struct Word {
    Who writer{kNobody, kNobody, -1, -1};
    Who reader{kNobody, kNobody, -1, -1};  // all readers since the last barrier
    bool copying = false;
  };

  Word& at(int64_t word);

  std::vector<Word> words_;
};

}  // namespace maskattn::twin
