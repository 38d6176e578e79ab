// The depthwise convolution's launches. Each element type has its own file, so that they compile side by side.
#pragma once

#include "conv_dispatch.cuh"
#include "cuda_launch.cuh"

namespace gspn {
namespace conv {

template <typename T>
void launch_forward(const ConvShape& s, const ConvPlan& plan, const ForwardPointers<T>& tensors, cudaStream_t stream);

// `plan` null: there are no parts, and the sums are zero.
template <typename T>
void launch_gradient(const ConvShape& s, const ConvPlan* plan, const GradientPointers<T>& tensors, T* dweight, T* dbias,
                     cudaStream_t stream);

#define GSPN_DEFINE_CONV_LAUNCHES(T)                                                                          \
  template <>                                                                                                 \
  void launch_forward<T>(const ConvShape& s, const ConvPlan& plan, const ForwardPointers<T>& tensors,         \
                         cudaStream_t stream) {                                                               \
    StreamLaunch launch{stream};                                                                              \
    start_forward<T>(s, plan, tensors, launch);                                                               \
  }                                                                                                           \
  template <>                                                                                                 \
  void launch_gradient<T>(const ConvShape& s, const ConvPlan* plan, const GradientPointers<T>& tensors,       \
                          T* dweight, T* dbias, cudaStream_t stream) {                                        \
    StreamLaunch launch{stream};                                                                              \
    if (plan) start_gradient<T>(s, *plan, tensors, launch);                                                   \
    start_sum<T>(s, tensors.parts, plan ? plan->parts() : 0, dweight, dbias, launch);                         \
  }

}  // namespace conv
}  // namespace gspn
