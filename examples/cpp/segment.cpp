// SPDX-License-Identifier: BSD-3-Clause
//
// Segments a picture with a network that `maskattn export --format aoti` has compiled, without Python:
//
//     segment .../maskattn_kernels/lib/libmaskattn_cpu.so out/model.pt2 picture.ppm labels.pgm
//
// The picture is a binary PPM (P6) of the size of the export; `convert photo.jpg -resize 256x192! picture.ppm`
// makes one. The labels are a PGM with the class number of each pixel.
#include <ATen/ATen.h>
#include <dlfcn.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>

#include <cstdio>
#include <exception>
#include <fstream>
#include <string>

static at::Tensor read_ppm(const char* name) {
  std::ifstream file(name, std::ios::binary);
  std::string kind;
  int64_t width = 0, height = 0, most = 0;
  if (!(file >> kind >> width >> height >> most) || kind != "P6" || most != 255)
    throw std::runtime_error(std::string(name) + ": expected a PPM (P6) of 8 bits");
  file.get();  // the line end before the pixels
  at::Tensor image = at::empty({1, height, width, 3}, at::kByte);
  if (!file.read(reinterpret_cast<char*>(image.data_ptr()), image.numel()))
    throw std::runtime_error(std::string(name) + ": is cut off");
  return image;
}

int main(int argc, char** argv) {
  if (argc != 5) {
    std::fprintf(stderr, "usage: segment libmaskattn_cpu.so model.pt2 picture.ppm labels.pgm\n");
    return 1;
  }
  if (dlopen(argv[1], RTLD_NOW) == nullptr) {  // registers the op that the package calls
    std::fprintf(stderr, "segment: %s\n", dlerror());
    return 1;
  }
  try {
    torch::inductor::AOTIModelPackageLoader network(argv[2]);
    const at::Tensor labels = network.run({read_ppm(argv[3])}).at(0).contiguous();  // uint8 (1, H, W)
    std::ofstream file(argv[4], std::ios::binary);
    file << "P5\n" << labels.size(2) << " " << labels.size(1) << "\n255\n";
    file.write(static_cast<const char*>(labels.data_ptr()), labels.numel());
    if (!file.flush()) throw std::runtime_error(std::string(argv[4]) + ": cannot be written");
    std::printf("written: %s, %lld x %lld\n", argv[4], static_cast<long long>(labels.size(1)),
                static_cast<long long>(labels.size(2)));
  } catch (const std::exception& error) {
    const std::string text = error.what();
    std::fprintf(stderr, "segment: %s\n", text.substr(0, text.find('\n')).c_str());
    return 1;
  }
  return 0;
}
