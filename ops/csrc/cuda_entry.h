// What every entry of the CUDA backend asks of its tensors and of torch: element type, alignment, current stream.
#pragma once

#include <cuda_runtime_api.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>
#include <initializer_list>

#include "cuda_check.h"
#include "cuda_types.h"
#include "scan_plan.h"

// Weak: a torch that is built without CUDA does not have it, and loads the library all the same.
extern "C" __attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(int32_t, void**);

namespace gspn {

template <typename Body>
void with_element_type(const torch::stable::Tensor& tensor, const char* name, Body&& body) {
  using torch::headeronly::ScalarType;
  switch (tensor.scalar_type()) {
    case ScalarType::Float: return body(float{});
    case ScalarType::BFloat16: return body(bfloat16{});
    case ScalarType::Half: return body(float16{});
    default: STD_TORCH_CHECK(false, "gspn: ", name, " must be float32, bfloat16 or float16 on CUDA");
  }
}

template <typename T>
const T* input(const torch::stable::Tensor& tensor) {
  return static_cast<const T*>(tensor.const_data_ptr());
}

template <typename T>
T* output(const torch::stable::Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}

inline cudaStream_t current_stream(int device) {
  STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream != nullptr,
                  "gspn: this torch is built without CUDA, and has no stream to run on");
  void* stream = nullptr;
  const AOTITorchError error = aoti_torch_get_current_cuda_stream(device, &stream);
  STD_TORCH_CHECK(error == 0, "gspn: torch has no current stream for device ", device);
  return static_cast<cudaStream_t>(stream);
}

inline DeviceLimits device_limits(int device) {
  DeviceLimits limits{};
  check_cuda(cudaDeviceGetAttribute(&limits.multiprocessors, cudaDevAttrMultiProcessorCount, device));
  check_cuda(cudaDeviceGetAttribute(&limits.shared_per_block, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
  return limits;
}

// The largest power of two, up to 16, that divides every address.
inline int64_t common_alignment(std::initializer_list<const torch::stable::Tensor*> tensors) {
  uintptr_t addresses = 16;
  for (const auto* tensor : tensors) addresses |= reinterpret_cast<uintptr_t>(tensor->const_data_ptr());
  return static_cast<int64_t>(addresses & -addresses);
}

}  // namespace gspn
