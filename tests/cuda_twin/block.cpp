// SPDX-License-Identifier: BSD-3-Clause
#include "block.h"

#include <bit>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <stdexcept>

#include "cuda/splits.h"

namespace maskattn::twin {
namespace {

constexpr size_t kStackBytes = 256 * 1024;

thread_local Block* current_block = nullptr;
thread_local Thread* current_thread = nullptr;

// Kept from launch to launch: most of a large stack is never touched, and so costs nothing. ThreadSanitizer needs
// new memory for the stack of a new thread.
char* stacks_for(int threads) {
  thread_local std::unique_ptr<char[]> memory;
  thread_local int held = 0;
  if (held < threads || order::kIsWatched) {
    memory.reset(new char[static_cast<size_t>(threads) * kStackBytes]);
    held = threads;
  }
  return memory.get();
}

}  // namespace

Thread& thread() { return *current_thread; }
Block& block() { return *current_block; }

Plant& plant() {
  static Plant plant;
  return plant;
}

int& launches() {
  static int count = 0;
  return count;
}

void check(bool holds, const char* rule) {
  if (!holds) throw std::runtime_error(rule);
}

void run_grid(int64_t blocks, int threads, int shared_bytes, const std::function<void()>& kernel) {
  ++launches();
  // The last block first: no block may depend on another one.
  for (int64_t i = blocks - 1; i >= 0; --i) Block(static_cast<uint32_t>(i), threads, shared_bytes).run(kernel);
  order::leave(&launches());  // all that follows comes after all blocks
}

Block::Block(uint32_t own_index, int threads, int shared_bytes)
    : index(own_index),
      threads_(static_cast<size_t>(threads)),
      warps_(static_cast<size_t>(threads) / kLanes),
      shared_(nullptr, std::free),
      shadow_(shared_bytes) {
  check(threads % kLanes == 0, "the threads of a block are not a multiple of 32");
  void* memory = nullptr;
  check(posix_memalign(&memory, 128, static_cast<size_t>(shared_bytes)) == 0, "out of memory");
  shared_.reset(static_cast<char*>(memory));
  std::memset(memory, 0xff, static_cast<size_t>(shared_bytes));  // NaN, and -1
  char* stacks = stacks_for(threads);
  for (size_t i = 0; i < threads_.size(); ++i) {
    threads_[i].index = static_cast<int>(i);
    threads_[i].fiber.begin(stacks + i * kStackBytes, kStackBytes, &Block::enter);
  }
  scheduler_.thread = order::this_thread();
  current_block = this;
}

Block::~Block() {
  for (Thread& t : threads_) t.fiber.end();
  current_block = nullptr;
}

void Block::run(const std::function<void()>& kernel) {
  kernel_ = &kernel;
  run_to_end();
  for (const Thread& t : threads_) check(t.copies.empty(), "a thread ended without waiting for its copies");
}

void Block::enter() {
  try {
    (*block().kernel_)();
  } catch (const std::exception& error) {
    block().error_ = error.what();
  }
  thread().state = State::kDone;
  order::come(&launches());
  switch_fibers(thread().fiber, block().scheduler_);
}

void Block::run_to_end() {
  const int warps = static_cast<int>(warps_.size());
  for (;;) {
    bool ran = false, all_done = true;
    for (int warp = 0; warp < warps; ++warp) do {
        for (int lane = 0; lane < kLanes; ++lane) {
          Thread& t = threads_[static_cast<size_t>(warp * kLanes + lane)];
          if (t.state == State::kReady) resume(t), ran = true;
        }
      } while (release_warp(warp));
    for (const Thread& t : threads_) all_done &= t.state == State::kDone;
    if (all_done) return;
    if (!release_block() && !ran) throw std::runtime_error("deadlock: no thread of the block can run");
  }
}

void Block::resume(Thread& t) {
  current_thread = &t;
  switch_fibers(scheduler_, t.fiber);
  if (error_.empty()) return;
  const std::string error =
      "block " + std::to_string(index) + ", thread " + std::to_string(t.index) + ": " + error_;
  error_.clear();
  throw std::runtime_error(error);
}

void Block::block_barrier() {
  if (++thread().barriers == plant().missing_barrier) return;
  void* place = &places_[epoch_ % 2];
  order::come(place);
  wait(State::kAtBlock, "barrier");
  order::leave(place);
}

void Block::warp_barrier() {
  Warp& warp = warps_[static_cast<size_t>(thread().index / kLanes)];
  void* place = &warp.places[warp.epoch % 2];
  order::come(place);
  wait(State::kAtWarp, "warp barrier");
  order::leave(place);
}

void Block::wait(State state, const char* what) {
  Thread& t = thread();
  t.state = state, t.at = what;
  switch_fibers(t.fiber, scheduler_);
}

bool Block::release_warp(int warp) {
  Thread* lanes = &threads_[static_cast<size_t>(warp * kLanes)];
  for (int lane = 0; lane < kLanes; ++lane) {
    if (lanes[lane].state != lanes[0].state)
      throw std::runtime_error("the lanes of a warp diverged: they wait in different places");
    if (lanes[lane].state == State::kAtWarp && std::strcmp(lanes[lane].at, lanes[0].at) != 0)
      throw std::runtime_error(std::string("lanes wait in ") + lanes[0].at + " and " + lanes[lane].at);
  }
  if (lanes[0].state != State::kAtWarp) return false;
  if (std::strcmp(lanes[0].at, "warp barrier") == 0) ++warps_[static_cast<size_t>(warp)].epoch;
  for (int lane = 0; lane < kLanes; ++lane) lanes[lane].state = State::kReady;
  return true;
}

bool Block::release_block() {
  for (const Thread& t : threads_)
    if (t.state != State::kAtBlock) return false;  // a thread that has ended never arrives
  ++epoch_;
  for (Thread& t : threads_) t.state = State::kReady;
  return true;
}

const std::array<uint32_t, kExchanged>* Block::exchange(const char* what, std::initializer_list<uint32_t> words) {
  Thread& t = thread();
  auto* lanes = warps_[static_cast<size_t>(t.index / kLanes)].words[t.exchanges++ % 2];
  std::copy(words.begin(), words.end(), lanes[t.index % kLanes].begin());
  wait(State::kAtWarp, what);
  return lanes;
}

Who Block::self() const {
  const int warp = current_thread->index / kLanes;
  return {current_thread->index, warp, epoch_, warps_[static_cast<size_t>(warp)].epoch};
}

void Block::copy(void* to, const void* from, bool exists) {
  check(reinterpret_cast<uintptr_t>(to) % 16 == 0, "a copy to an address that is not a multiple of 16");
  check(!exists || reinterpret_cast<uintptr_t>(from) % 16 == 0,
        "a copy from an address that is not a multiple of 16");
  const int64_t word = (static_cast<char*>(to) - shared()) / 4;
  for (int64_t i = 0; i < 4; ++i) shadow_.copy_begins(word + i, self());
  order::wrote(to, 16);
  if (exists) order::read(from, 16);
  thread().copies.push_back({to, from, exists});
}

void Block::wait_copies() {
  if (plant().missing_wait) return thread().copies.clear();
  for (const Copy& c : thread().copies) {
    if (c.exists) {
      std::memcpy(c.to, c.from, 16);
    } else {
      std::memset(c.to, 0, 16);
    }
    const int64_t word = (static_cast<char*>(c.to) - shared()) / 4;
    for (int64_t i = 0; i < 4; ++i) shadow_.copy_ends(word + i, self());
    order::wrote(c.to, 16);
  }
  thread().copies.clear();
}

void Block::note_read(const void* p, size_t bytes) {
  const int64_t word = (static_cast<const char*>(p) - shared()) / 4;
  for (size_t i = 0; i < bytes / 4; ++i) shadow_.read(word + static_cast<int64_t>(i), self());
}

void Block::note_write(const void* p, size_t bytes) {
  const int64_t word = (static_cast<const char*>(p) - shared()) / 4;
  for (size_t i = 0; i < bytes / 4; ++i) shadow_.write(word + static_cast<int64_t>(i), self());
}

float half_to_float(uint16_t bits) {
  const uint32_t sign = uint32_t{bits & 0x8000u} << 16, rest = bits & 0x7fffu;
  if (rest >= 0x7c00) return std::bit_cast<float>(sign | 0x7f800000u | (rest & 0x3ffu) << 13);
  // As a float whose exponent is 112 too small, denormal numbers included.
  return std::bit_cast<float>(sign | rest << 13) * 0x1p112f;
}

uint16_t float_to_half(float x) {
  const uint32_t sign = std::bit_cast<uint32_t>(x) >> 16 & 0x8000u;
  if (std::isnan(x)) return static_cast<uint16_t>(sign | 0x7e00u);
  const double magnitude = std::fabs(double{x});
  if (magnitude == 0.0) return static_cast<uint16_t>(sign);
  if (magnitude >= 65520.0) return static_cast<uint16_t>(sign | 0x7c00u);
  int exponent = 0;
  std::frexp(magnitude, &exponent);
  const int step = std::max(exponent - 11, -24);  // of the last bit
  const auto units = static_cast<uint32_t>(std::nearbyint(std::ldexp(magnitude, -step)));
  return static_cast<uint16_t>(sign | (units + (static_cast<uint32_t>(step + 24) << 10)));
}

uint16_t float_to_bfloat(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  if (std::isnan(x)) return static_cast<uint16_t>(bits >> 16 | 0x40u);
  return static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

}  // namespace maskattn::twin

// The number of launches so far.
extern "C" __attribute__((visibility("default"))) int maskattn_twin_launches() {
  return maskattn::twin::launches();
}

extern "C" __attribute__((visibility("default"))) void maskattn_twin_plant(int missing_barrier,
                                                                           bool missing_wait) {
  maskattn::twin::plant() = {missing_barrier, missing_wait};
}

extern "C" __attribute__((visibility("default"))) int maskattn_twin_choose_splits(int processors, int memory,
                                                                                  int64_t shared_bytes,
                                                                                  int64_t blocks, int64_t tiles) {
  const maskattn::Chip chip{processors, memory};
  return maskattn::choose_splits(blocks, maskattn::blocks_at_a_time(chip, shared_bytes), tiles);
}
