// What a file of scan_launch.h's launches consists of.
#pragma once

#include "cuda_launch.cuh"
#include "scan_dispatch.cuh"
#include "scan_launch.h"

namespace gspn {

template <typename T>
void launch_forward(const ScanShape& s, const ScanPlan& plan, const ForwardPointers<T>& tensors, cudaStream_t stream) {
  StreamLaunch launch{stream};
  forward_scan<T>(s, plan, tensors, launch);
}

template <typename T>
void launch_backward(const ScanShape& s, const ScanPlan& plan, const BackwardPointers<T>& tensors, float* dx_parts,
                     cudaStream_t stream) {
  StreamLaunch launch{stream};
  backward_scan<T>(s, plan, tensors, dx_parts, launch);
}

#define GSPN_DEFINE_LAUNCHES(T)                                                                                       \
  template void launch_forward<T>(const ScanShape&, const ScanPlan&, const ForwardPointers<T>&, cudaStream_t);        \
  template void launch_backward<T>(const ScanShape&, const ScanPlan&, const BackwardPointers<T>&, float*, cudaStream_t);

}  // namespace gspn
