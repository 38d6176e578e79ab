// The CUDA entries of scan and read-out: one kernel where that is expected to be faster, else the scan's and the merge's.
// Stable ABI only.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include <optional>

#include "mix_checks.h"
#include "scan_entry.h"

namespace gspn {
namespace {

// A plan for one kernel; its vector is 0 where there shall be two.
ScanPlan plan_of_one(ScanShape& s, bool backward, const Tensor& x, int64_t alignment) {
  const DeviceLimits device = checked_limits(s, x);
  const int size = static_cast<int>(x.element_size());
  s.reads_out = true;
  ScanPlan plan = make_plan(s, backward, size, alignment, device);
  if (!reads_out_well(s, backward, size, alignment, device, plan)) plan.vector = 0;
  if (plan.vector > 0) check_lanes(plan);
  return plan;
}

std::tuple<Tensor, Tensor> mixed(const Tensor& x, const Tensor& lam, const Tensor& logits, std::optional<Tensor> u,
                                 std::vector<int64_t> directions, int64_t segment, int64_t normalization, bool states) {
  ScanShape shape = checked_mix(x, lam, logits, u, directions, segment, normalization);
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  Tensor y = torch::stable::empty_like(x), h = states ? torch::stable::empty_like(lam) : nothing_like(lam);
  if (x.numel() == 0) return {y, h};
  const Tensor& gates = u ? *u : lam;
  // Not that of h, so that y is the same with it and without.
  const ScanPlan plan = plan_of_one(shape, false, x, common_alignment({&x, &lam, &logits, &gates, &y}));
  if (plan.vector == 0 || (states && common_alignment({&h}) < 16)) {
    h = scan(x, lam, logits, directions, segment, normalization);
    y = merge_states(h, u ? &*u : nullptr);
    return {y, states ? h : nothing_like(lam)};
  }
  const cudaStream_t stream = current_stream(x.get_device_index());
  with_element_type(x, "x", [&](auto element) {
    using T = decltype(element);
    const ForwardPointers<T> tensors{input<T>(x), input<T>(lam), input<T>(logits), states ? output<T>(h) : nullptr,
                                     u ? input<T>(*u) : nullptr, output<T>(y)};
    launch_forward<T>(shape, plan, tensors, stream);
  });
  return {y, h};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> mixed_backward(const Tensor& grad_y, const Tensor& x, const Tensor& lam,
                                                          const Tensor& logits, std::optional<Tensor> u, const Tensor& h,
                                                          std::vector<int64_t> directions, int64_t segment,
                                                          int64_t normalization) {
  ScanShape shape = checked_mix(x, lam, logits, u, directions, segment, normalization);
  check_like(grad_y, x, "grad_y", "x");
  check_like(h, lam, "h");
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  Tensor dx = torch::stable::empty_like(x);
  Tensor dlam = torch::stable::empty_like(lam);
  Tensor dlogits = torch::stable::empty_like(logits);
  Tensor du = u ? torch::stable::empty_like(*u) : nothing_like(lam);
  if (x.numel() == 0) return {dx, dlam, dlogits, du};
  const Tensor &gates = u ? *u : lam, &of_gates = u ? du : dlam;
  const int64_t alignment =
      common_alignment({&grad_y, &x, &lam, &logits, &gates, &h, &dx, &dlam, &dlogits, &of_gates});
  const ScanPlan plan = plan_of_one(shape, true, x, alignment);
  if (plan.vector == 0) {
    const auto [grad_h, grad_u] = merge_states_backward(grad_y, h, u ? &*u : nullptr);
    std::tie(dx, dlam, dlogits) = scan_backward(grad_h, x, lam, logits, h, directions, segment, normalization);
    return {dx, dlam, dlogits, u ? grad_u : du};
  }
  const cudaStream_t stream = current_stream(x.get_device_index());
  const Tensor dx_parts = scratch(x, needs_dx_parts(shape, plan) ? shape.directions * x.numel() : 0);
  const Tensor dlogits_parts = scratch(x, plan.parts > 1 ? logits.numel() * plan.parts : 0);
  with_element_type(x, "x", [&](auto element) {
    using T = decltype(element);
    BackwardPointers<T> tensors =
        backward_pointers<T>(grad_y, x, lam, logits, h, dx, dlam, dlogits, dlogits_parts);
    if (u) tensors.u = input<T>(*u), tensors.du = output<T>(du);
    launch_backward<T>(shape, plan, tensors, floats(dx_parts), stream);
  });
  return {dx, dlam, dlogits, du};
}

}  // namespace
}  // namespace gspn

STABLE_TORCH_LIBRARY_IMPL(gspn, CUDA, m) {
  m.impl("mix", TORCH_BOX(&gspn::mixed));
  m.impl("mix_backward", TORCH_BOX(&gspn::mixed_backward));
}
