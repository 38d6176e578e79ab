// The gated merge's CPU entries: checks, and pixels shared out over torch's threads.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <tuple>

#include "cpu_entry.h"
#include "merge_checks.h"
#include "merge_cpu_kernel.h"

namespace gspn {
namespace merge {
namespace {

using torch::stable::Tensor;

const Kernels& kernels() {
  static const Kernels& chosen = chosen_kernels<Kernels>(GSPN_TABLES(gspn::merge));
  return chosen;
}

// Calls run(begin, end) for pixels; a share is large enough to be worth a thread.
template <typename Run>
void share_out(const MergeShape& s, const Run& run) {
  const int64_t grain = std::max<int64_t>(1, (1 << 16) / (s.directions * s.channels));
  torch::stable::parallel_for(0, s.pixels, grain, run);
}

Tensor merge(const Tensor& h, const Tensor& u) {
  const MergeShape shape = checked_merge(h, u);
  Tensor y = torch::stable::new_empty(h, merged_sizes(h));
  if (h.numel() == 0) return y;
  const auto run = kernels().forward[storage_of(h, "h")];
  const ForwardTensors tensors{h.const_data_ptr(), u.const_data_ptr(), y.mutable_data_ptr()};
  share_out(shape, [&](int64_t begin, int64_t end) { run(shape, tensors, begin, end); });
  return y;
}

// Larger than the caches, so that nobody finds them there; and of whole, aligned cache lines, as streaming wants it.
bool past_caches(const MergeShape& s, const Tensor& dh, const Tensor& du) {
  constexpr int64_t line = 64;
  const int64_t row = s.channels * dh.element_size();
  const auto address = [](const Tensor& tensor) { return reinterpret_cast<uintptr_t>(tensor.const_data_ptr()); };
  return row % line == 0 && (address(dh) | address(du)) % line == 0 && dh.numel() * dh.element_size() > kCacheBytes;
}

std::tuple<Tensor, Tensor> merge_backward(const Tensor& grad_y, const Tensor& h, const Tensor& u) {
  const MergeShape shape = checked_merge_backward(grad_y, h, u);
  Tensor dh = torch::stable::empty_like(h), du = torch::stable::empty_like(u);
  if (h.numel() == 0) return {dh, du};
  const auto run = kernels().backward[storage_of(h, "h")];
  const BackwardTensors tensors{grad_y.const_data_ptr(), h.const_data_ptr(),        u.const_data_ptr(),
                                dh.mutable_data_ptr(),   du.mutable_data_ptr(),     past_caches(shape, dh, du)};
  share_out(shape, [&](int64_t begin, int64_t end) { run(shape, tensors, begin, end); });
  return {dh, du};
}

}  // namespace
}  // namespace merge
}  // namespace gspn

STABLE_TORCH_LIBRARY_IMPL(gspn, CPU, m) {
  m.impl("merge", TORCH_BOX(&gspn::merge::merge));
  m.impl("merge_backward", TORCH_BOX(&gspn::merge::merge_backward));
}
