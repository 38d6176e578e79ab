// CUDA's runtime is linked into the library, so errors are asked for and told here and not by torch, which may have
// another one.
#pragma once

#include <cuda_runtime_api.h>
#include <torch/headeronly/util/Exception.h>

namespace gspn {

inline void check_cuda(cudaError_t error) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // so that the next launch does not report this one again
  STD_TORCH_CHECK(false, "gspn: CUDA error ", static_cast<int>(error), ": ", cudaGetErrorString(error));
}

}  // namespace gspn
