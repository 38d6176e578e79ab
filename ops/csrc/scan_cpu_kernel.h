// The tasks of the CPU scan, compiled once per instruction set (scan_cpu_*.cpp) and chosen at load (scan_cpu.cpp).
#pragma once

#include "scan_shape.h"

namespace gspn {

enum Storage : int { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2, kFloat64 = 3, kStorageCount = 4 };

// Some channels of one image: whole groups, so that no two tasks add to one number.
struct Slice {
  int64_t image, first_group, group_count;
};

struct ScanInputs {
  const void *x, *lam, *logits;
};

struct ForwardTensors {
  ScanInputs in;
  void* h;
};

// dx is summed in two halves, (k0 + k2) + (k1 + k3), so that an image alone keeps two threads at work, each with columns
// and rows, of which columns take longer; the order is the same for any number of threads.
constexpr int64_t halves_of(int64_t directions) { return directions > 2 ? 2 : 1; }

// What a backward reads and writes, but for dh and what it comes from.
struct ScanGradients {
  ScanInputs in;
  const void* h;
  void *dlam, *dlogits;
  void* dx_sums[2];  // (B, H, W, C) in the type of the arithmetic; the second is null for one or two directions
};

struct BackwardTensors {
  const void* grad_h;
  ScanGradients scan;
};

struct ScanKernels {
  const char* name;
  void (*forward[kStorageCount])(const ScanShape&, const ForwardTensors&, const Slice&, int64_t k);
  void (*backward[kStorageCount])(const ScanShape&, const BackwardTensors&, const Slice&, int64_t half);
  // dx = the sum of `sums` (one, or two of them), rounded; elements begin to end.
  void (*add_sums[kStorageCount])(void* const (&sums)[2], void* dx, int64_t begin, int64_t end);
};

extern const ScanKernels kBaselineKernels;
#if defined(__x86_64__)
extern const ScanKernels kAvx2Kernels;
extern const ScanKernels kAvx512Kernels;
#endif

}  // namespace gspn
