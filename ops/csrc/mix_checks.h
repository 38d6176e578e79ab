// The checks with which the entries of scan and read-out begin; see scan_checks.h.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <optional>
#include <vector>

#include "scan_checks.h"

namespace gspn {

// u, if there is one, must be like lam.
inline ScanShape checked_mix(const torch::stable::Tensor& x, const torch::stable::Tensor& lam,
                             const torch::stable::Tensor& logits, const std::optional<torch::stable::Tensor>& u,
                             const std::vector<int64_t>& directions, int64_t segment, int64_t normalization) {
  const ScanShape shape = checked_shape(x, lam, logits, directions, segment, normalization);
  if (u) check_like(*u, lam, "u");
  return shape;
}

// What is not asked for: a tensor without elements.
inline torch::stable::Tensor nothing_like(const torch::stable::Tensor& tensor) {
  return torch::stable::new_empty(tensor, {0});
}

}  // namespace gspn
