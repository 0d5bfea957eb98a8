// SPDX-License-Identifier: BSD-3-Clause
//
// What the CPU library says of itself, by C functions: every language can read them, and no build of the library
// depends on one of Python.
#pragma once

#define MASKATTN_API extern "C" __attribute__((visibility("default")))

// Lines of "name: value": compiler, torch (built against), tiers (compiled), arch.
MASKATTN_API const char* maskattn_cpu_build_info();

// The instruction-set tier that a call would use now. nullptr if MASKATTN_CPU_TIER asks for an impossible one;
// then *error says so, until the next call on this thread.
MASKATTN_API const char* maskattn_cpu_tier(const char** error);
