// SPDX-License-Identifier: BSD-3-Clause
//
// Masked attention in a program without Python. Loading the library registers its ops with torch:
//
//     serve .../maskattn_kernels/lib/libmaskattn_cpu.so
//
// The ops and their schemas are in csrc/schemas.h. A package of AOTInductor that calls them needs the same dlopen,
// before it is loaded.
#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <dlfcn.h>

#include <cmath>
#include <cstdio>
#include <optional>
#include <tuple>

using at::Tensor;
using Mask = std::optional<Tensor>;

int main(int argc, char** argv) {
  if (argc != 2 || dlopen(argv[1], RTLD_NOW) == nullptr) {
    std::fprintf(stderr, "usage: serve libmaskattn_cpu.so: %s\n", argc == 2 ? dlerror() : "no library given");
    return 1;
  }
  const auto attention = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("maskattn::cpu_infer", "")
                             .typed<std::tuple<Tensor, Tensor>(const Tensor&, const Tensor&, const Tensor&,
                                                               const Mask&, const Mask&, const Mask&, double)>();

  const Tensor q = at::randn({2, 4, 96, 32}), k = at::randn_like(q), v = at::randn_like(q);  // (B, H, N, D)
  const Tensor mask = at::rand({2, 1, 96}) < 0.25;  // (B, H, N) or one for all heads; true = selected
  const double scale = 1 / std::sqrt(32.0);
  const auto [out, lse] = attention.call(q, k, v, mask, mask, std::nullopt, scale);

  // The same over all pairs of tokens: what is not selected gets no weight, and zeros as its own result.
  const Tensor scores = at::matmul(q, k.transpose(-2, -1)) * scale;
  const Tensor weights = scores.masked_fill(mask.logical_not().unsqueeze(2), -INFINITY).softmax(-1);
  const Tensor expected = at::matmul(weights, v) * mask.unsqueeze(-1);
  const double difference = (out - expected).abs().max().item<double>();
  std::printf("largest difference from dense attention: %.1e\n", difference);
  return difference < 1e-5 ? 0 : 1;
}
