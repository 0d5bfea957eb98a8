// SPDX-License-Identifier: BSD-3-Clause
//
// Which instruction set serves a call: the fastest that was compiled and that this CPU and operating system offer,
// or another one of them named by the environment variable MASKATTN_CPU_TIER, which is read at every call so that
// tests can switch.
#include <cstdlib>
#include <iterator>
#include <stdexcept>
#include <string>

#ifdef MASKATTN_HAVE_AVX512_BF16
#include <cpuid.h>
#endif
#if defined(MASKATTN_HAVE_AMX) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#ifdef MASKATTN_HAVE_NEON_BF16
#include <sys/auxv.h>
#endif

#include "schedule.h"

namespace maskattn {

extern const Engine engine_generic;
extern const Engine engine_avx2;
extern const Engine engine_avx512;
extern const Engine engine_avx512_bf16;
extern const Engine engine_amx;
extern const Engine engine_neon_bf16;

namespace {

struct Tier {
  const char* name;
  const Engine& engine;
  bool bfloat16_only;   // other dtypes are served by a tier before it
  bool (*runs_here)();  // where all tiers before it run
  // Whether it is slower here than the tier before it; nullptr: never.
  bool (*is_slow)() = nullptr;
};

#ifdef MASKATTN_HAVE_AVX512_BF16
// Intel's cores with AVX512-FP16 (Golden Cove: Sapphire and Emerald Rapids) begin a vdpbf16ps every second cycle,
// and two vfmadd231ps in each: half the products of floats. It matters where a virtual machine hides AMX.
// maskattn_kernels/common/processor.py has the same rule for whole networks.
bool has_slow_pairs() {
  constexpr unsigned kLeaf = 7, kFp16 = 1u << 23;
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __builtin_cpu_is("intel") && __get_cpuid_count(kLeaf, 0, &a, &b, &c, &d) != 0 && (d & kFp16) != 0;
}
#endif

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

#ifdef MASKATTN_HAVE_NEON_BF16
constexpr unsigned long kHwcap2Bf16 = 1 << 14;  // HWCAP2_BF16 of Linux 5.7 and later
#endif

// What was compiled, from old to new.
constexpr Tier kTiers[] = {
    {"generic", engine_generic, false, [] { return true; }},
#ifdef MASKATTN_HAVE_AVX2
    {"avx2", engine_avx2, false,
     [] {
       return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
     }},
#endif
#ifdef MASKATTN_HAVE_AVX512
    {"avx512", engine_avx512, false,
     [] {
       return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
              __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
     }},
#endif
#ifdef MASKATTN_HAVE_AVX512_BF16
    {"avx512_bf16", engine_avx512_bf16, true, [] { return bool(__builtin_cpu_supports("avx512bf16")); },
     has_slow_pairs},
#endif
#ifdef MASKATTN_HAVE_AMX
    {"amx", engine_amx, true,
     [] { return __builtin_cpu_supports("amx-tile") && __builtin_cpu_supports("amx-bf16") && request_amx(); }},
#endif
#ifdef MASKATTN_HAVE_NEON_BF16
    {"neon_bf16", engine_neon_bf16, true, [] { return (getauxval(AT_HWCAP2) & kHwcap2Bf16) != 0; }},
#endif
};

// How many tiers run on this CPU.
int count_tiers() {
#ifdef __x86_64__
  __builtin_cpu_init();
#endif
  int count = 0;
  while (count < std::ssize(kTiers) && kTiers[count].runs_here()) ++count;
  return count;
}

const Tier* fastest_of(int count) {
  const Tier* newest = &kTiers[count - 1];
  return newest->is_slow != nullptr && newest->is_slow() ? newest - 1 : newest;
}

const Tier* current_tier() {
  static const int count = count_tiers();
  const char* asked = std::getenv("MASKATTN_CPU_TIER");
  if (asked == nullptr || *asked == '\0') {
    static const Tier* const fastest = fastest_of(count);
    return fastest;
  }
  std::string offered;
  for (int t = 0; t < count; ++t) {
    if (std::string(asked) == kTiers[t].name) return &kTiers[t];
    offered += std::string(t == 0 ? "" : ", ") + kTiers[t].name;
  }
  throw std::runtime_error("MASKATTN_CPU_TIER: expected " + offered + " on this CPU with this build, got '" +
                           asked + "'");
}

}  // namespace

const char* cpu_tier() { return current_tier()->name; }

const Engine& choose_engine(DType dtype) {
  const Tier* tier = current_tier();
  while (tier->bfloat16_only && dtype != DType::kBFloat16) --tier;
  return tier->engine;
}

}  // namespace maskattn
