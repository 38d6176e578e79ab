// What the CUDA entries of the scan, and of scan and read-out in one, share.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <tuple>
#include <vector>

#include "cuda_entry.h"
#include "scan_launch.h"

namespace gspn {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// scan_cuda.cpp
Tensor scan(const Tensor& x, const Tensor& lam, const Tensor& logits, std::vector<int64_t> directions,
            int64_t segment, int64_t normalization);
std::tuple<Tensor, Tensor, Tensor> scan_backward(const Tensor& grad_h, const Tensor& x, const Tensor& lam,
                                                 const Tensor& logits, const Tensor& h,
                                                 std::vector<int64_t> directions, int64_t segment,
                                                 int64_t normalization);

// merge_cuda.cpp; without u every gate is 1, and there is no du.
Tensor merge_states(const Tensor& h, const Tensor* u);
std::tuple<Tensor, Tensor> merge_states_backward(const Tensor& grad_y, const Tensor& h, const Tensor* u);

inline DeviceLimits checked_limits(const ScanShape& s, const Tensor& x) {
  constexpr int64_t most = INT32_MAX;
  STD_TORCH_CHECK(s.pixels() <= most && s.directions * 3 * s.channels * 4 <= most,
                  "gspn: on CUDA a map has at most 2^31 - 1 pixels and 178,956,970 / K channels");
  return device_limits(x.get_device_index());
}

inline void check_lanes(const ScanPlan& plan) {
  STD_TORCH_CHECK(plan.blocks <= INT32_MAX / plan.lanes, "gspn: the scan needs more than 2^31 - 1 lanes; split the batch");
}

inline Tensor scratch(const Tensor& like, int64_t elements) {
  return torch::stable::new_empty(like, {elements}, ScalarType::Float);
}

inline float* floats(const Tensor& tensor) {
  return tensor.numel() > 0 ? static_cast<float*>(tensor.mutable_data_ptr()) : nullptr;
}

// What a plan decides is filled in at the launch.
template <typename T>
BackwardPointers<T> backward_pointers(const Tensor& grad, const Tensor& x, const Tensor& lam, const Tensor& logits,
                                      const Tensor& h, const Tensor& dx, const Tensor& dlam, const Tensor& dlogits,
                                      const Tensor& dlogits_parts) {
  return {input<T>(grad), input<T>(x),     input<T>(lam),      input<T>(logits), input<T>(h),
          output<T>(dx),  output<T>(dlam), output<T>(dlogits), {},               floats(dlogits_parts),
          0,              1};
}

}  // namespace gspn
