// SPDX-License-Identifier: BSD-3-Clause
#include "shadow.h"

#include <stdexcept>
#include <string>

#include "order.h"

namespace maskattn::twin {
namespace {

void race(const char* what, int64_t word, int other, int thread) {
  if (order::kIsWatched) return;  // ThreadSanitizer must find it by itself
  throw std::runtime_error(std::string("race: ") + what + " at shared word " + std::to_string(word) +
                           ", threads " + std::to_string(other) + " and " + std::to_string(thread));
}

// Whether what `earlier` did may happen at the same time as what `now` does.
bool unordered(const Who& earlier, const Who& now) {
  if (earlier.epoch != now.epoch || earlier.thread == now.thread) return false;
  return earlier.warp != now.warp || earlier.warp_epoch == now.warp_epoch;
}

}  // namespace

Shadow::Word& Shadow::at(int64_t word) {
  if (word < 0 || word >= static_cast<int64_t>(words_.size()))
    throw std::runtime_error("outside of shared memory: word " + std::to_string(word));
  return words_[static_cast<size_t>(word)];
}

void Shadow::read(int64_t word, const Who& who) {
  Word& w = at(word);
  if (w.copying) race("read under a copy", word, w.writer.thread, who.thread);
  if (unordered(w.writer, who)) race("read after write", word, w.writer.thread, who.thread);
  Who& r = w.reader;
  if (r.epoch != who.epoch) {
    r = who;
  } else if (r.warp != who.warp) {
    r.thread = r.warp = kSeveral;
  } else if (r.warp_epoch != who.warp_epoch) {
    r = who;
  } else if (r.thread != who.thread) {
    r.thread = kSeveral;
  }
}

void Shadow::write(int64_t word, const Who& who) {
  Word& w = at(word);
  if (w.copying) race("write under a copy", word, w.writer.thread, who.thread);
  if (unordered(w.writer, who)) race("write after write", word, w.writer.thread, who.thread);
  if (unordered(w.reader, who)) race("write after read", word, w.reader.thread, who.thread);
  w.writer = who;
}

void Shadow::copy_begins(int64_t word, const Who& who) {
  write(word, who);
  at(word).copying = true;
}

void Shadow::copy_ends(int64_t word, const Who& who) {
  at(word).copying = false;
  at(word).writer = who;
}

}  // namespace maskattn::twin
