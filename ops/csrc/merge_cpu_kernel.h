// The gated merge on the CPU, compiled once per instruction set (merge_cpu_kernel.cpp) and chosen at load
// (merge_cpu.cpp).
#pragma once

#include "merge_shape.h"
#include "scan_cpu_kernel.h"

namespace gspn {
namespace merge {

struct ForwardTensors {
  const void *h, *u;
  void* y;
};

struct BackwardTensors {
  const void *grad_y, *h, *u;
  void *dh, *du;
  bool past_caches;  // dh and du are larger than the caches and made of whole, aligned cache lines
};

// By Storage; pixels begin to end.
struct Kernels {
  const char* name;
  void (*forward[kStorageCount])(const MergeShape&, const ForwardTensors&, int64_t begin, int64_t end);
  void (*backward[kStorageCount])(const MergeShape&, const BackwardTensors&, int64_t begin, int64_t end);
};

extern const Kernels kBaselineKernels;
#if defined(__x86_64__)
extern const Kernels kAvx2Kernels;
extern const Kernels kAvx512Kernels;
#endif

}  // namespace merge
}  // namespace gspn
