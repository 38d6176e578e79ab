// The checks with which the entries of the depthwise convolution begin; see scan_checks.h.
#pragma once

#include <optional>

#include "conv_shape.h"
#include "scan_checks.h"

namespace gspn {
namespace conv {

inline void check_tensor(const torch::stable::Tensor& tensor, const torch::stable::Tensor& x, const char* name) {
  STD_TORCH_CHECK(tensor.scalar_type() == x.scalar_type(), "gspn: ", name, " has another dtype than x");
  STD_TORCH_CHECK(tensor.device() == x.device(), "gspn: ", name, " is on another device than x");
  STD_TORCH_CHECK(tensor.is_contiguous(), "gspn: ", name, " must be contiguous");
}

inline ConvShape checked_conv(const torch::stable::Tensor& x, const torch::stable::Tensor& weight,
                              const std::optional<torch::stable::Tensor>& bias) {
  STD_TORCH_CHECK(x.is_contiguous(), "gspn: x must be contiguous");
  STD_TORCH_CHECK(x.dim() == 4, "gspn: x must be (B, H, W, C)");
  check_tensor(weight, x, "weight");
  STD_TORCH_CHECK(weight.dim() == 4 && weight.size(0) == x.size(3) && weight.size(1) == 1 &&
                      weight.size(2) == weight.size(3),
                  "gspn: weight must be (C, 1, k, k) with the C of x");
  const int64_t size = weight.size(2);
  STD_TORCH_CHECK(size == 3 || size == 5 || size == 7, "gspn: the kernel's size must be 3, 5 or 7");
  if (bias) {
    check_tensor(*bias, x, "bias");
    STD_TORCH_CHECK(bias->dim() == 1 && bias->size(0) == x.size(3), "gspn: bias must be (C,)");
  }
  return {x.size(0), x.size(1), x.size(2), x.size(3), static_cast<int>(size)};
}

inline ConvShape checked_conv_backward(const torch::stable::Tensor& grad_y, const torch::stable::Tensor& relu,
                                       const torch::stable::Tensor& x, const torch::stable::Tensor& weight,
                                       bool square) {
  const ConvShape shape = checked_conv(x, weight, std::nullopt);
  check_like(grad_y, x, "grad_y", "x");
  if (square) check_like(relu, x, "relu", "x");
  return shape;
}

}  // namespace conv
}  // namespace gspn
