// The tasks of the CPU scan, compiled once per instruction set (scan_cpu_*.cpp) and chosen at load (scan_cpu.cpp).
#pragma once

#include "scan_shape.h"

namespace gspn {

enum Storage : int { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2, kFloat64 = 3, kStorageCount = 4 };

// Some channels of one image: whole groups, so that no two tasks add to one number.
struct Slice {
  int64_t image, first_group, group_count;
};

struct ForwardTensors {
  const void *x, *lam, *logits;
  void* h;
};

struct BackwardTensors {
  const void *grad_h, *x, *lam, *logits, *h;
  void *dx, *dlam, *dlogits;
};

struct ScanKernels {
  const char* name;
  void (*forward[kStorageCount])(const ScanShape&, const ForwardTensors&, const Slice&, int64_t k);
  void (*backward[kStorageCount])(const ScanShape&, const BackwardTensors&, const Slice&);
};

extern const ScanKernels kBaselineKernels;
#if defined(__x86_64__)
extern const ScanKernels kAvx2Kernels;
extern const ScanKernels kAvx512Kernels;
#endif

}  // namespace gspn
