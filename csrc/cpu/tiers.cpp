// SPDX-License-Identifier: BSD-3-Clause
//
// Which instruction set serves a call: the best that was compiled and that this CPU and operating
// system offer, or a lower one named by the environment variable MASKATTN_CPU_TIER, which is read at every call so
// that tests can switch.
#include <cstdlib>
#include <stdexcept>
#include <string>

#if defined(MASKATTN_HAVE_AMX) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "schedule.h"

namespace maskattn {

extern const Engine engine_generic;
#ifdef MASKATTN_HAVE_AVX2
extern const Engine engine_avx2;
#endif
#ifdef MASKATTN_HAVE_AVX512
extern const Engine engine_avx512;
#endif
#ifdef MASKATTN_HAVE_AMX
extern const Engine engine_amx;
#endif

namespace {

#ifdef MASKATTN_HAVE_AMX
// Linux hands out the tile registers on request only (Documentation/arch/x86/xstate.rst).
bool request_amx() {
#ifdef __linux__
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}
#endif

enum Tier { kGeneric, kAvx2, kAvx512, kAmx };
constexpr const char* kNames[] = {"generic", "avx2", "avx512", "amx"};

Tier detect() {
  Tier best = kGeneric;
#if defined(__x86_64__)
  __builtin_cpu_init();
#ifdef MASKATTN_HAVE_AVX2
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c"))
    best = kAvx2;
#endif
#ifdef MASKATTN_HAVE_AVX512
  if (best == kAvx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
    best = kAvx512;
#endif
#ifdef MASKATTN_HAVE_AMX
  if (best == kAvx512 && __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("amx-tile") &&
      __builtin_cpu_supports("amx-bf16") && request_amx())
    best = kAmx;
#endif
#endif
  return best;
}

Tier current_tier() {
  static const Tier best = detect();
  const char* asked = std::getenv("MASKATTN_CPU_TIER");
  if (asked == nullptr || *asked == '\0') return best;
  for (int t = kGeneric; t <= best; ++t)
    if (std::string(asked) == kNames[t]) return static_cast<Tier>(t);
  std::string offered = kNames[0];
  for (int t = 1; t <= best; ++t) offered += std::string(", ") + kNames[t];
  throw std::runtime_error("MASKATTN_CPU_TIER: expected " + offered + " on this CPU with this build, got '" +
                           asked + "'");
}

}  // namespace

const char* cpu_tier() { return kNames[current_tier()]; }

const Engine& choose_engine(DType dtype) {
  const Tier tier = current_tier();
#ifdef MASKATTN_HAVE_AMX
  if (tier == kAmx && dtype == DType::kBFloat16) return engine_amx;
#endif
#ifdef MASKATTN_HAVE_AVX512
  if (tier >= kAvx512) return engine_avx512;
#endif
#ifdef MASKATTN_HAVE_AVX2
  if (tier >= kAvx2) return engine_avx2;
#endif
  (void)tier, (void)dtype;
  return engine_generic;
}

}  // namespace maskattn
