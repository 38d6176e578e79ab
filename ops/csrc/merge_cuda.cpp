// The gated merge's CUDA entries: checks, device guard, current stream, launch, launch check. Stable ABI only.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <tuple>

#include "merge_checks.h"
#include "merge_launch.h"
#include "scan_entry.h"

namespace gspn {
namespace {

void check_blocks(const MergeShape& s) {
  STD_TORCH_CHECK(merge_blocks(s, 1) <= INT32_MAX, "gspn: y has more than 2^39 elements; split the batch");
}

}  // namespace

Tensor merge_states(const Tensor& h, const Tensor* u) {
  const MergeShape shape = checked_merge(h, u ? *u : h);
  const torch::stable::accelerator::DeviceGuard guard(h.get_device_index());
  Tensor y = torch::stable::new_empty(h, merged_sizes(h));
  if (h.numel() == 0) return y;
  check_blocks(shape);
  const cudaStream_t stream = current_stream(h.get_device_index());
  const int64_t alignment = common_alignment({&h, u ? u : &h, &y});
  with_element_type(h, "h", [&](auto element) {
    using T = decltype(element);
    launch_merge<T>(shape, alignment, input<T>(h), u ? input<T>(*u) : nullptr, output<T>(y), stream);
  });
  return y;
}

std::tuple<Tensor, Tensor> merge_states_backward(const Tensor& grad_y, const Tensor& h, const Tensor* u) {
  const MergeShape shape = checked_merge_backward(grad_y, h, u ? *u : h);
  const torch::stable::accelerator::DeviceGuard guard(h.get_device_index());
  Tensor dh = torch::stable::empty_like(h), du = u ? torch::stable::empty_like(*u) : dh;
  if (h.numel() == 0) return {dh, du};
  check_blocks(shape);
  const cudaStream_t stream = current_stream(h.get_device_index());
  const int64_t alignment = common_alignment({&grad_y, &h, u ? u : &h, &dh, &du});
  with_element_type(h, "h", [&](auto element) {
    using T = decltype(element);
    launch_merge_backward<T>(shape, alignment, input<T>(grad_y), input<T>(h), u ? input<T>(*u) : nullptr,
                             output<T>(dh), u ? output<T>(du) : nullptr, stream);
  });
  return {dh, du};
}

namespace {

Tensor merge(const Tensor& h, const Tensor& u) { return merge_states(h, &u); }

std::tuple<Tensor, Tensor> merge_backward(const Tensor& grad_y, const Tensor& h, const Tensor& u) {
  return merge_states_backward(grad_y, h, &u);
}

}  // namespace
}  // namespace gspn

STABLE_TORCH_LIBRARY_IMPL(gspn, CUDA, m) {
  m.impl("merge", TORCH_BOX(&gspn::merge));
  m.impl("merge_backward", TORCH_BOX(&gspn::merge_backward));
}
