// The checks with which the entries of the gated merge begin; see scan_checks.h.
#pragma once

#include "merge_shape.h"
#include "scan_checks.h"

namespace gspn {

inline MergeShape checked_merge(const torch::stable::Tensor& h, const torch::stable::Tensor& u) {
  const int64_t last = h.dim() - 1;
  STD_TORCH_CHECK(last >= 1 && h.size(last - 1) >= 1, "gspn: expected h (..., K, C) with at least one direction");
  STD_TORCH_CHECK(h.is_contiguous(), "gspn: h must be contiguous");
  check_like(u, h, "u", "h");
  const int64_t directions = h.size(last - 1), channels = h.size(last);
  return {h.numel() > 0 ? h.numel() / (directions * channels) : 0, directions, channels};
}

// The shape of y: that of h without the directions.
inline std::vector<int64_t> merged_sizes(const torch::stable::Tensor& h) {
  std::vector<int64_t> sizes;
  for (int64_t i = 0; i < h.dim(); i++)
    if (i != h.dim() - 2) sizes.push_back(h.size(i));
  return sizes;
}

inline MergeShape checked_merge_backward(const torch::stable::Tensor& grad_y, const torch::stable::Tensor& h,
                                         const torch::stable::Tensor& u) {
  const MergeShape shape = checked_merge(h, u);
  STD_TORCH_CHECK(grad_y.scalar_type() == h.scalar_type(), "gspn: grad_y has another dtype than h");
  STD_TORCH_CHECK(grad_y.device() == h.device(), "gspn: grad_y is on another device than h");
  STD_TORCH_CHECK(grad_y.is_contiguous(), "gspn: grad_y must be contiguous");
  const std::vector<int64_t> expected = merged_sizes(h);
  STD_TORCH_CHECK(grad_y.dim() == static_cast<int64_t>(expected.size()), "gspn: grad_y must be h without K");
  for (int64_t i = 0; i < grad_y.dim(); i++)
    STD_TORCH_CHECK(grad_y.size(i) == expected[i], "gspn: grad_y must be h without K");
  return shape;
}

}  // namespace gspn
