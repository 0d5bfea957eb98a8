// SPDX-License-Identifier: BSD-3-Clause
//
// With MASKATTN_TSAN, tells ThreadSanitizer that every fiber is a thread, and which barriers order them. It then
// finds the races that shadow.h finds, by another algorithm, and those in global memory too, where two blocks must
// not write to one address. The sources of the twin are compiled without it, and the kernels with it.
#pragma once

#include <cstddef>

#ifdef MASKATTN_TSAN
#include <sanitizer/tsan_interface.h>

extern "C" void __tsan_read_range(const void* address, size_t bytes);
extern "C" void __tsan_write_range(void* address, size_t bytes);

namespace maskattn::twin::order {

constexpr bool kIsWatched = true;

inline void* this_thread() { return __tsan_get_current_fiber(); }
inline void* new_thread() { return __tsan_create_fiber(0); }
inline void end_thread(void* thread) { __tsan_destroy_fiber(thread); }
inline void switch_to(void* thread) { __tsan_switch_to_fiber(thread, __tsan_switch_to_fiber_no_sync); }

// Whatever threads did before come(place) is ordered before what follows leave(place) in any thread.
inline void come(void* place) { __tsan_release(place); }
inline void leave(void* place) { __tsan_acquire(place); }

inline void read(const void* address, size_t bytes) { __tsan_read_range(address, bytes); }
inline void wrote(void* address, size_t bytes) { __tsan_write_range(address, bytes); }

}  // namespace maskattn::twin::order
#else

namespace maskattn::twin::order {

constexpr bool kIsWatched = false;

inline void* this_thread() { return nullptr; }
inline void* new_thread() { return nullptr; }
inline void end_thread(void*) {}
inline void switch_to(void*) {}
inline void come(void*) {}
inline void leave(void*) {}
inline void read(const void*, size_t) {}
inline void wrote(void*, size_t) {}

}  // namespace maskattn::twin::order
#endif
