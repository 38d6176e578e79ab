// Starts the scan's kernels on a CUDA stream. Each element type has its own file, so that they compile side by side.
#pragma once

#include <cuda_runtime.h>

#include <torch/csrc/stable/macros.h>

#include "scan_dispatch.cuh"

namespace gspn {

struct StreamLaunch {
  cudaStream_t stream;

  template <typename Kernel, typename... Arguments>
  void operator()(Kernel kernel, int64_t blocks, int lanes, int rows, int shared_bytes, const Arguments&... arguments) {
    constexpr int without_opt_in = 48 * 1024;
    if (shared_bytes > without_opt_in)
      STD_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes));
    kernel<<<dim3(static_cast<unsigned>(blocks)), dim3(lanes, rows), shared_bytes, stream>>>(arguments...);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }
};

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
