// The tensors of the depthwise convolution as its kernels take them.
#pragma once

namespace gspn {
namespace conv {

template <typename T>
struct ForwardPointers {
  const T* x;
  const T* positive;  // x is read times twice this, or null: the chain rule of the gate
  const T* weights;   // (channels, Size, Size)
  const T* bias;      // null: none
  T* y;
  T* relu;      // null: not wanted; else y is its square
  bool turned;  // the weights are those of the transpose
  bool square;  // y is relu squared
};

template <typename T>
struct GradientPointers {
  const T* grad_y;
  const T* positive;  // grad_y is read times twice this, or null
  const T* x;
  float* parts;  // (parts, channels * (Size * Size + 1)): the weights', then the bias's
};

}  // namespace conv
}  // namespace gspn
