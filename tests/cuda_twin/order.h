// SPDX-License-Identifier: BSD-3-Clause
//
// What ThreadSanitizer is told, where MASKATTN_TSAN is set: that every fiber is a thread, and what orders them. It
// then sees what shadow.h does, by another algorithm and in global memory too, where two blocks that write to one
// address are a race. The sources of the twin are compiled without it, and the kernels with it.
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

// What threads did before they came to `place` is over for those who leave it.
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
