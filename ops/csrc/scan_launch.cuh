// The scan's launches. Each element type has its own file, so that they compile side by side.
#pragma once

#include "cuda_launch.cuh"
#include "scan_dispatch.cuh"

namespace gspn {

template <typename T>
void launch_forward(const ScanShape& s, const ScanPlan& plan, const ForwardPointers<T>& tensors, cudaStream_t stream);

template <typename T>
void launch_backward(const ScanShape& s, const ScanPlan& plan, const BackwardPointers<T>& tensors, float* dx_parts,
                     cudaStream_t stream);

#define GSPN_DEFINE_LAUNCHES(T)                                                                                    \
  template <>                                                                                                      \
  void launch_forward<T>(const ScanShape& s, const ScanPlan& plan, const ForwardPointers<T>& tensors,              \
                         cudaStream_t stream) {                                                                    \
    StreamLaunch launch{stream};                                                                                   \
    forward_scan<T>(s, plan, tensors, launch);                                                                     \
  }                                                                                                                \
  template <>                                                                                                      \
  void launch_backward<T>(const ScanShape& s, const ScanPlan& plan, const BackwardPointers<T>& tensors,            \
                          float* dx_parts, cudaStream_t stream) {                                                  \
    StreamLaunch launch{stream};                                                                                   \
    backward_scan<T>(s, plan, tensors, dx_parts, launch);                                                          \
  }

}  // namespace gspn
