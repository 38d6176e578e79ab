// What a file of conv_launch.h's launches consists of.
#pragma once

#include "conv_dispatch.cuh"
#include "conv_launch.h"
#include "cuda_launch.cuh"

namespace gspn {
namespace conv {

template <typename T>
void launch_forward(const ConvShape& s, const ConvPlan& plan, const ForwardPointers<T>& tensors, cudaStream_t stream) {
  StreamLaunch launch{stream};
  start_forward<T>(s, plan, tensors, launch);
}

template <typename T>
void launch_gradient(const ConvShape& s, const ConvPlan* plan, const GradientPointers<T>& tensors, T* dweight, T* dbias,
                     cudaStream_t stream) {
  StreamLaunch launch{stream};
  if (plan) start_gradient<T>(s, *plan, tensors, launch);
  start_sum<T>(s, tensors.parts, plan ? plan->parts() : 0, dweight, dbias, launch);
}

#define GSPN_DEFINE_CONV_LAUNCHES(T)                                                                               \
  template void launch_forward<T>(const ConvShape&, const ConvPlan&, const ForwardPointers<T>&, cudaStream_t);     \
  template void launch_gradient<T>(const ConvShape&, const ConvPlan*, const GradientPointers<T>&, T*, T*, cudaStream_t);

}  // namespace conv
}  // namespace gspn
