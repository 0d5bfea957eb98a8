// SPDX-License-Identifier: BSD-3-Clause
// A libcuda with three GPUs that are not there: it loads kernels, and notes launches in place of running them.
//
// Triton's own compiler, launcher and argument packing run in front of it as on a GPU. As a driver does, a launch
// reads so many arguments as the machine code declares (the records KPARAM_INFO of its ELF file), and refuses a
// grid, a block or shared memory that the GPU does not have.
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef int CUresult;
enum { OK = 0, INVALID_VALUE = 1, INVALID_IMAGE = 200, NOT_FOUND = 500 };
enum { MAX_ARGUMENTS = 64, MAX_LAUNCHES = 1 << 14 };

typedef struct {
  int capability, processors, shared, shared_of_processor;
} Gpu;
static const Gpu gpus[] = {{80, 108, 166912, 167936}, {90, 132, 232448, 233472}, {100, 148, 232448, 233472}};
enum { GPUS = sizeof(gpus) / sizeof(gpus[0]) };
static int current;

typedef struct {
  const char* image;
  int number;
} Module;

typedef struct {
  char name[128];
  int arguments, sizes[MAX_ARGUMENTS];
} Function;

typedef struct {
  const Function* function;
  unsigned grid[3], block[3], shared;
  void* stream;
  int gpu;
  uint64_t arguments[MAX_ARGUMENTS];  // the bytes of each, zero-extended
} Launch;
static Launch launches[MAX_LAUNCHES];
static int launched;

// For the tests.
int stub_launched(void) { return launched; }
void stub_forget(void) { launched = 0; }
const Launch* stub_launch(int number) { return &launches[number]; }
const char* stub_name(const Launch* l) { return l->function->name; }
int stub_arguments(const Launch* l) { return l->function->arguments; }
int stub_size(const Launch* l, int i) { return l->function->sizes[i]; }
void stub_use_gpu(int gpu) { current = gpu; }

CUresult cuInit(unsigned flags) { return OK; }
CUresult cuDriverGetVersion(int* version) { return *version = 13000, OK; }
CUresult cuDeviceGetCount(int* count) { return *count = GPUS, OK; }
CUresult cuDeviceGet(int* device, int ordinal) { return *device = ordinal, OK; }
CUresult cuDeviceGetAttribute(int* value, int attribute, int device) {
  const Gpu* gpu = &gpus[device];
  switch (attribute) {
    case 1:
      return *value = 1024, OK;  // threads of a block
    case 8:
      return *value = 49152, OK;  // shared memory of a block
    case 10:
      return *value = 32, OK;  // threads of a warp
    case 12:
    case 82:
      return *value = 65536, OK;  // registers
    case 16:
      return *value = gpu->processors, OK;
    case 75:
      return *value = gpu->capability / 10, OK;
    case 76:
      return *value = gpu->capability % 10, OK;
    case 81:
      return *value = gpu->shared_of_processor, OK;
    case 97:
      return *value = gpu->shared, OK;  // shared memory of a block that asks for it
    default:
      return *value = 1, OK;
  }
}
CUresult cuDevicePrimaryCtxRetain(void** context, int device) { return *context = (void*)(gpus + device), OK; }
CUresult cuDevicePrimaryCtxRelease_v2(int device) { return OK; }
CUresult cuCtxGetCurrent(void** context) { return *context = (void*)(gpus + current), OK; }
CUresult cuCtxSetCurrent(void* context) { return OK; }
CUresult cuCtxGetDevice(int* device) { return *device = current, OK; }
CUresult cuCtxSetLimit(int limit, size_t value) { return OK; }
CUresult cuCtxGetLimit(size_t* value, int limit) { return *value = 0, OK; }
CUresult cuGetErrorString(CUresult error, const char** text) {
  return *text = error == INVALID_IMAGE ? "no kernel image" : "invalid value, in a stub of the driver", OK;
}

CUresult cuModuleLoadData(void** module, const void* image) {
  if (memcmp(image, "\177ELF", 4)) return INVALID_IMAGE;
  Module* loaded = malloc(sizeof(Module));
  loaded->image = image;
  return *module = loaded, OK;
}
CUresult cuModuleUnload(void* module) { return free(module), OK; }

typedef struct {
  uint32_t name, type;
  uint64_t flags, address, offset, size;
  uint32_t link, info;
  uint64_t align, entry_size;
} Section;

CUresult cuModuleGetFunction(void** function, void* module, const char* name) {
  const char* image = ((Module*)module)->image;
  const Section* sections = (const Section*)(image + *(const uint64_t*)(image + 40));
  const uint16_t count = *(const uint16_t*)(image + 60), names = *(const uint16_t*)(image + 62);
  Function* found = calloc(1, sizeof(Function));
  strncpy(found->name, name, sizeof(found->name) - 1);
  for (int s = 0; s < count; ++s) {
    const char* section = image + sections[names].offset + sections[s].name;
    if (strncmp(section, ".nv.info.", 9) || strcmp(section + 9, name)) continue;
    const char* at = image + sections[s].offset;
    const char* end = at + sections[s].size;
    while (at < end) {  // a byte of format, a byte of kind, 16 bits of size or value, what has so many bytes
      const uint16_t size = at[0] == 4 ? *(const uint16_t*)(at + 2) : 0;
      if (at[0] == 4 && at[1] == 0x17) {
        const uint16_t place = *(const uint16_t*)(at + 8);
        if (place >= MAX_ARGUMENTS) return free(found), INVALID_VALUE;
        found->sizes[place] = *(const uint32_t*)(at + 12) >> 18;
        if (place >= found->arguments) found->arguments = place + 1;
      }
      at += 4 + size;
    }
    return *function = found, OK;
  }
  return free(found), NOT_FOUND;
}
CUresult cuFuncGetAttribute(int* value, int attribute, void* function) {
  return *value = attribute == 0 ? 1024 : 0, OK;  // threads of a block; nothing is spilled
}
CUresult cuFuncSetAttribute(void* function, int attribute, int value) { return OK; }
CUresult cuFuncSetCacheConfig(void* function, int config) { return OK; }
CUresult cuPointerGetAttribute(uint64_t* data, int attribute, uint64_t pointer) { return *data = pointer, OK; }
CUresult cuPointerGetAttributes(unsigned count, int* attributes, uint64_t** data, uint64_t pointer) {
  for (unsigned i = 0; i < count; ++i) *data[i] = pointer;
  return OK;
}
CUresult cuStreamIsCapturing(void* stream, int* status) { return *status = 0, OK; }
CUresult cuOccupancyMaxActiveClusters(int* clusters, void* function, const void* config) {
  return *clusters = 1, OK;
}
CUresult cuTensorMapEncodeTiled(void) { return OK; }
CUresult cuTensorMapEncodeIm2col(void) { return OK; }

typedef struct {
  unsigned grid[3], block[3], shared;
  void* stream;
} Config;
CUresult cuLaunchKernelEx(const Config* config, void* function, void** arguments, void** extra) {
  const Function* f = function;
  if (!config->grid[0] || config->grid[0] > INT32_MAX || config->grid[1] > 65535 || config->grid[2] > 65535)
    return INVALID_VALUE;
  if (config->block[0] * config->block[1] * config->block[2] > 1024) return INVALID_VALUE;
  if (config->shared > (unsigned)gpus[current].shared) return INVALID_VALUE;
  Launch* launch = &launches[launched % MAX_LAUNCHES];
  ++launched;
  memset(launch, 0, sizeof(Launch));
  launch->function = f;
  memcpy(launch->grid, config->grid, sizeof(launch->grid));
  memcpy(launch->block, config->block, sizeof(launch->block));
  launch->shared = config->shared;
  launch->stream = config->stream;
  launch->gpu = current;
  for (int i = 0; i < f->arguments; ++i) memcpy(&launch->arguments[i], arguments[i], f->sizes[i]);
  return OK;
}
