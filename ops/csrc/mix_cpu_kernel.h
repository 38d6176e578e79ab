// Scan and read-out in one pass on the CPU, compiled once per instruction set (mix_cpu_kernel.cpp) and chosen at load
// (mix_cpu.cpp).
#pragma once

#include "scan_cpu_kernel.h"

namespace gspn {
namespace mix {

struct ForwardTensors {
  ScanInputs in;
  const void* u;  // null: every gate is 1
  void* y;
  void* h;  // null: no derivative will need it
};

struct BackwardTensors {
  const void *grad_y, *u;  // u, du: null as above
  void* du;
  ScanGradients scan;
};

// By Storage. A forward task does all directions of its slice, in their order, so that their sum is its own.
struct Kernels {
  const char* name;
  void (*forward[kStorageCount])(const ScanShape&, const ForwardTensors&, const Slice&);
  void (*backward[kStorageCount])(const ScanShape&, const BackwardTensors&, const Slice&, int64_t half);
};

extern const Kernels kBaselineKernels;
#if defined(__x86_64__)
extern const Kernels kAvx2Kernels;
extern const Kernels kAvx512Kernels;
#endif

}  // namespace mix
}  // namespace gspn
