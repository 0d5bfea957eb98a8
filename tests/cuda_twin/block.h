// SPDX-License-Identifier: BSD-3-Clause
//
// One block of CUDA threads on the host: a fiber for each, which runs until it has to wait for others.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <initializer_list>
#include <memory>
#include <string>
#include <vector>

#include "fiber.h"
#include "shadow.h"

namespace maskattn::twin {

constexpr int kLanes = 32;
constexpr int kExchanged = 6;  // words that a lane can pass to the others at a time

struct Copy {
  void* to;
  const void* from;
  bool exists;
};

enum class State { kReady, kAtWarp, kAtBlock, kDone };

struct Thread {
  int index = 0;
  State state = State::kReady;
  const char* at = "";       // the function it waits in
  int exchanges = 0;         // their parity names the buffer
  int barriers = 0;          // so far, for Plant::missing_barrier
  std::vector<Copy> copies;  // under way
  Fiber fiber;
};

class Block {
 public:
  const uint32_t index;

  Block(uint32_t index, int threads, int shared_bytes);
  ~Block();

  void run(const std::function<void()>& kernel);

  char* shared() { return shared_.get(); }
  void block_barrier();
  void warp_barrier();
  // The words of every lane of the caller's warp.
  const std::array<uint32_t, kExchanged>* exchange(const char* what, std::initializer_list<uint32_t> words);

  void copy(void* to, const void* from, bool exists);
  void wait_copies();
  void note_read(const void* p, size_t bytes);
  void note_write(const void* p, size_t bytes);

 private:
  struct Warp {
    int epoch = 0;
    char places[2];  // as those of the block
    std::array<uint32_t, kExchanged> words[2][kLanes];
  };

  void wait(State state, const char* what);
  void resume(Thread& t);
  bool release_warp(int warp);
  bool release_block();
  void run_to_end();
  Who self() const;
  static void enter();

  std::vector<Thread> threads_;
  std::vector<Warp> warps_;
  int epoch_ = 0;
  char places_[2];  // used in turn by barriers: the first thread to leave one may soon be at the next
  std::unique_ptr<char, void (*)(void*)> shared_;
  Shadow shadow_;
  const std::function<void()>* kernel_ = nullptr;
  std::string error_;
  Fiber scheduler_;
};

// The thread and the block that run now.
Thread& thread();
Block& block();

// Faults made on purpose, which the checks must catch: 0 for none.
struct Plant {
  int missing_barrier = 0;  // every thread leaves out its n-th barrier
  bool missing_wait = false;
};
Plant& plant();
int& launches();  // so far

void check(bool holds, const char* rule);  // throws std::runtime_error
void run_grid(int64_t blocks, int threads, int shared_bytes, const std::function<void()>& kernel);

float half_to_float(uint16_t bits);
uint16_t float_to_half(float x);
uint16_t float_to_bfloat(float x);

}  // namespace maskattn::twin
