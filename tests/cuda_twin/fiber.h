// SPDX-License-Identifier: BSD-3-Clause
//
// A thread of control that runs until it switches to another. ucontext starts it; _setjmp and _longjmp switch,
// since they leave the signal mask alone, which ucontext sets by two system calls. Sanitizers only know the
// latter.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <cstddef>

#include "order.h"

namespace maskattn::twin {

struct Fiber {
  ucontext_t context;
  jmp_buf place;
  bool is_new = false;
  void* thread = nullptr;  // as order.h knows it

  void begin(char* stack, size_t bytes, void (*run)()) {
    getcontext(&context);
    context.uc_stack.ss_sp = stack;
    context.uc_stack.ss_size = bytes;
    context.uc_link = nullptr;  // it never ends, it switches away for good
    makecontext(&context, run, 0);
    is_new = true;
    thread = order::new_thread();
  }

  void end() { order::end_thread(thread); }
};

inline void switch_fibers(Fiber& from, Fiber& to) {
  order::switch_to(to.thread);
#if defined(__SANITIZE_ADDRESS__) || defined(MASKATTN_TSAN)
  swapcontext(&from.context, &to.context);
#else
  if (_setjmp(from.place) != 0) return;
  if (!to.is_new) _longjmp(to.place, 1);
  to.is_new = false;
  setcontext(&to.context);
#endif
}

}  // namespace maskattn::twin
