// The depthwise convolution on the CPU, compiled once per instruction set (conv_cpu_kernel.cpp) and chosen at load
// (conv_cpu.cpp).
#pragma once

#include "conv_shape.h"
#include "scan_cpu_kernel.h"

namespace gspn {
namespace conv {

struct ForwardTensors {
  const void* x;
  const void* positive;  // x is read times twice this, or null: the chain rule of the gate
  const void* weights;   // packed
  const void* bias;      // null: none
  void* y;
  void* relu;  // null: y is the convolution; else y is its relu squared, and relu goes here
  bool square; // y is relu squared, whether relu is wanted or not
};

struct GradientTensors {
  const void *grad_y, *positive, *x;
  void* parts;  // (batch, blocks, size * size + 1, lanes) in the arithmetic's type: those of the weights and of the bias
};

// By Storage. Channels are done by blocks as wide as a vector; all of these functions do one block, of one image or of all.
struct Kernels {
  const char* name;
  int lanes[kStorageCount];
  // Weights (channels, size, size) as (blocks, size * size, lanes), turned around for the gradient of the input.
  void (*pack[kStorageCount])(const ConvShape&, const void* weights, bool turned, void* packed, int64_t block);
  void (*forward[kStorageCount])(const ConvShape&, const ForwardTensors&, int64_t image, int64_t block);
  void (*gradient[kStorageCount])(const ConvShape&, const GradientTensors&, int64_t image, int64_t block);
  // The sum of the parts over the images, in their order, as the gradients of weights and bias (null: none).
  void (*add_parts[kStorageCount])(const ConvShape&, const void* parts, void* of_weights, void* of_bias, int64_t block);
};

extern const Kernels kBaselineKernels;
#if defined(__x86_64__)
extern const Kernels kAvx2Kernels;
extern const Kernels kAvx512Kernels;
#endif

}  // namespace conv
}  // namespace gspn
