// The checks with which every entry from Python begins. scan.py has told the user already; these keep a direct call of
// torch.ops.gspn from reading memory that it must not.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <vector>

#include "scan_shape.h"

namespace gspn {

inline void check_like(const torch::stable::Tensor& tensor, const torch::stable::Tensor& expected, const char* name,
                       const char* like = "lam") {
  STD_TORCH_CHECK(tensor.scalar_type() == expected.scalar_type(), "gspn: ", name, " has another dtype than ", like);
  STD_TORCH_CHECK(tensor.device() == expected.device(), "gspn: ", name, " is on another device than ", like);
  STD_TORCH_CHECK(tensor.is_contiguous(), "gspn: ", name, " must be contiguous");
  STD_TORCH_CHECK(tensor.dim() == expected.dim(), "gspn: ", name, " has another shape than ", like);
  for (int64_t i = 0; i < expected.dim(); i++)
    STD_TORCH_CHECK(tensor.size(i) == expected.size(i), "gspn: ", name, " has another shape than ", like);
}

inline ScanShape checked_shape(const torch::stable::Tensor& x, const torch::stable::Tensor& lam,
                               const torch::stable::Tensor& logits, const std::vector<int64_t>& directions,
                               int64_t segment, int64_t normalization) {
  for (const auto* tensor : {&x, &logits}) {
    STD_TORCH_CHECK(tensor->scalar_type() == lam.scalar_type(), "gspn: x, lam and logits must share one dtype");
    STD_TORCH_CHECK(tensor->device() == lam.device(), "gspn: x, lam and logits must share one device");
  }
  STD_TORCH_CHECK(x.is_contiguous() && lam.is_contiguous() && logits.is_contiguous(),
                  "gspn: x, lam and logits must be contiguous");
  STD_TORCH_CHECK(x.dim() == 4 && lam.dim() == 5 && logits.dim() == 6,
                  "gspn: expected x (B, H, W, C), lam (B, H, W, K, C), logits (B, H, W, K, 3, G)");
  const int64_t count = directions.size();
  STD_TORCH_CHECK(count >= 1 && count <= 4 && lam.size(3) == count && logits.size(3) == count,
                  "gspn: K must be the number of directions, 1 to 4");
  for (int64_t i = 0; i < 3; i++)
    STD_TORCH_CHECK(lam.size(i) == x.size(i) && logits.size(i) == x.size(i),
                    "gspn: x, lam and logits must share B, H and W");
  const int64_t channels = x.size(3), groups = logits.size(5);
  STD_TORCH_CHECK(lam.size(4) == channels, "gspn: x and lam must share C");
  STD_TORCH_CHECK(logits.size(4) == 3 && groups >= 1 && channels % groups == 0,
                  "gspn: logits must have 3 neighbours and a G that divides C");
  STD_TORCH_CHECK(segment >= 0 && normalization >= kRowStochastic && normalization <= kNone,
                  "gspn: unknown segment or normalization");
  ScanShape shape{x.size(0), x.size(1), x.size(2), count, channels, groups, segment,
                  static_cast<int>(normalization), {}};
  for (int64_t k = 0; k < count; k++) {
    STD_TORCH_CHECK(directions[k] >= kRight && directions[k] <= kUp, "gspn: unknown direction");
    shape.codes[k] = static_cast<int>(directions[k]);
  }
  return shape;
}

}  // namespace gspn
