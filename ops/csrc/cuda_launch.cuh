// Starts kernels on a CUDA stream. CUDA's runtime is linked into the library, so errors are asked for and told here and
// not by torch, which may have another one.
#pragma once

#include <cuda_runtime.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>

namespace gspn {

inline void check_cuda(cudaError_t error) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // so that the next launch does not report this one again
  STD_TORCH_CHECK(false, "gspn: CUDA error ", static_cast<int>(error), ": ", cudaGetErrorString(error));
}

struct StreamLaunch {
  cudaStream_t stream;

  template <typename Kernel, typename... Arguments>
  void operator()(Kernel kernel, int64_t blocks, int lanes, int rows, int shared_bytes, const Arguments&... arguments) {
    constexpr int without_opt_in = 48 * 1024;
    if (shared_bytes > without_opt_in)
      check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes));
    kernel<<<dim3(static_cast<unsigned>(blocks)), dim3(lanes, rows), shared_bytes, stream>>>(arguments...);
    check_cuda(cudaGetLastError());
  }
};

}  // namespace gspn
