// SPDX-License-Identifier: BSD-3-Clause
//
// What one core of this machine can do: multiply-adds of float32, of pairs of bfloat16 where it has AVX512-BF16,
// and bytes that it reads. The kernels' own rates are shares of these.
//
//     c++ -O3 -march=native bench/peak.cpp -o peak && taskset -c 0 ./peak [seconds]
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <vector>

#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

namespace {

#ifdef __AVX512F__
constexpr int kLanes = 16;
#else
constexpr int kLanes = 8;
#endif
typedef float Vec __attribute__((vector_size(kLanes * 4)));
typedef float UnalignedVec __attribute__((vector_size(kLanes * 4), aligned(4), may_alias));

// Enough independent sums to hide the latency, few enough for the registers.
constexpr int kSums = kLanes == 16 ? 24 : 12;
constexpr int64_t kSteps = 1 << 20;

double thread_seconds() {
  timespec t;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

// The best rate of `work` units a call, over about `seconds`.
template <class Call>
double best_rate(double work, double seconds, const Call& call) {
  double best = 0;
  for (const double start = thread_seconds(); thread_seconds() - start < seconds;) {
    const double begin = thread_seconds();
    call();
    best = std::max(best, work / (thread_seconds() - begin));
  }
  return best;
}

volatile float sink;

// `add` makes a new sum of a sum and two operands.
template <class Add>
void multiply_add(const Add& add) {
  Vec sums[kSums];
  for (int i = 0; i < kSums; ++i) sums[i] = Vec{} + static_cast<float>(i);  // equal sums would be computed once
  Vec a = Vec{} + 1.0f, b = Vec{} + 0.5f;
  for (int64_t step = 0; step < kSteps; ++step) {
#pragma GCC unroll 24
    for (int i = 0; i < kSums; ++i) sums[i] = add(sums[i], a, b);
    asm volatile("" : "+v"(a), "+v"(b));
  }
  for (const Vec& sum : sums) sink = sum[0];
}

void read(const std::vector<float>& data) {
  Vec sums[8] = {};
  for (size_t i = 0; i + 8 * kLanes <= data.size(); i += 8 * kLanes)
    for (int v = 0; v < 8; ++v) sums[v] += *reinterpret_cast<const UnalignedVec*>(data.data() + i + v * kLanes);
  for (const Vec& sum : sums) sink = sum[0];
}

}  // namespace

int main(int argc, char** argv) {
  const double seconds = argc > 1 ? std::atof(argv[1]) : 2.0;
  const double products = static_cast<double>(kSteps) * kSums * kLanes;
  const double fp32 =
      best_rate(2 * products, seconds, [] { multiply_add([](Vec sum, Vec a, Vec b) { return sum + a * b; }); });
  std::printf("float32 multiply-add: %.0f GFLOP/s\n", fp32 / 1e9);
#ifdef __AVX512BF16__
  const double bf16 = best_rate(4 * products, seconds, [] {
    multiply_add([](Vec sum, Vec a, Vec b) -> Vec {
      return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
    });
  });
  std::printf("bfloat16 pairs (vdpbf16ps): %.0f GFLOP/s\n", bf16 / 1e9);
#endif
  for (const int64_t mebibytes : {2, 8, 256}) {
    const std::vector<float> data((mebibytes << 20) / 4, 1.0f);
    const double rate = best_rate(static_cast<double>(mebibytes << 20), seconds, [&] { read(data); });
    std::printf("read of %lld MiB: %.0f GB/s\n", static_cast<long long>(mebibytes), rate / 1e9);
  }
}
