// The CUDA backend's entries: checks, device guard, current stream, plan, launch, launch check. Stable ABI only.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <tuple>
#include <vector>

#include "scan_checks.h"
#include "scan_entry.h"

namespace gspn {

namespace {

ScanPlan checked_plan(const ScanShape& s, bool backward, const Tensor& x, int64_t alignment) {
  const DeviceLimits device = checked_limits(s, x);
  const ScanPlan plan = make_plan(s, backward, static_cast<int>(x.element_size()), alignment, device);
  STD_TORCH_CHECK(plan.vector > 0, "gspn: lines of ", Extent(s).length,
                  " positions do not fit this GPU's shared memory (", device.shared_per_block, " bytes)");
  check_lanes(plan);
  return plan;
}

}  // namespace

Tensor scan(const Tensor& x, const Tensor& lam, const Tensor& logits, std::vector<int64_t> directions,
            int64_t segment, int64_t normalization) {
  const ScanShape shape = checked_shape(x, lam, logits, directions, segment, normalization);
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  Tensor h = torch::stable::empty_like(lam);
  if (h.numel() == 0) return h;
  const cudaStream_t stream = current_stream(x.get_device_index());
  const ScanPlan plan = checked_plan(shape, false, x, common_alignment({&x, &lam, &logits, &h}));
  with_element_type(x, "x", [&](auto element) {
    using T = decltype(element);
    const ForwardPointers<T> tensors{input<T>(x), input<T>(lam), input<T>(logits), output<T>(h)};
    launch_forward<T>(shape, plan, tensors, stream);
  });
  return h;
}

std::tuple<Tensor, Tensor, Tensor> scan_backward(const Tensor& grad_h, const Tensor& x, const Tensor& lam,
                                                 const Tensor& logits, const Tensor& h,
                                                 std::vector<int64_t> directions, int64_t segment,
                                                 int64_t normalization) {
  const ScanShape shape = checked_shape(x, lam, logits, directions, segment, normalization);
  check_like(grad_h, lam, "grad_h");
  check_like(h, lam, "h");
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  Tensor dx = torch::stable::empty_like(x);
  Tensor dlam = torch::stable::empty_like(lam);
  Tensor dlogits = torch::stable::empty_like(logits);
  if (x.numel() == 0) return {dx, dlam, dlogits};
  const cudaStream_t stream = current_stream(x.get_device_index());
  const int64_t alignment = common_alignment({&grad_h, &x, &lam, &logits, &h, &dx, &dlam, &dlogits});
  const ScanPlan plan = checked_plan(shape, true, x, alignment);
  const Tensor dx_parts = scratch(x, needs_dx_parts(shape, plan) ? shape.directions * x.numel() : 0);
  const Tensor dlogits_parts = scratch(x, plan.parts > 1 ? logits.numel() * plan.parts : 0);
  with_element_type(x, "x", [&](auto element) {
    using T = decltype(element);
    const BackwardPointers<T> tensors =
        backward_pointers<T>(grad_h, x, lam, logits, h, dx, dlam, dlogits, dlogits_parts);
    launch_backward<T>(shape, plan, tensors, floats(dx_parts), stream);
  });
  return {dx, dlam, dlogits};
}

}  // namespace gspn

STABLE_TORCH_LIBRARY_IMPL(gspn, CUDA, m) {
  m.impl("scan", TORCH_BOX(&gspn::scan));
  m.impl("scan_backward", TORCH_BOX(&gspn::scan_backward));
}

// For benchmarks/: the plan and the modelled microseconds for a device that need not be present. `shape` is B, H, W, K,
// C, G, segment, normalization and four directions; `plan` takes vector, lanes, rows, run, tiled, parts, shared bytes,
// blocks, lines of a task, items in flight. `backward` has 2 more where the states are read out on the spot.
extern "C" __attribute__((visibility("default"))) double gspn_cuda_plan(const int64_t* shape, int backward,
                                                                        int element_bytes, int multiprocessors,
                                                                        int shared_per_block, int64_t* plan) {
  gspn::ScanShape s{shape[0], shape[1], shape[2], shape[3], shape[4], shape[5], shape[6], 0, {}};
  s.normalization = static_cast<int>(shape[7]);
  for (int k = 0; k < 4; k++) s.codes[k] = static_cast<int>(shape[8 + k]);
  s.reads_out = backward & 2;
  backward &= 1;
  const gspn::DeviceLimits device{multiprocessors, shared_per_block};
  const gspn::ScanPlan made = gspn::make_plan(s, backward, element_bytes, 16, device);
  const int64_t numbers[] = {made.vector, made.lanes, made.rows,         made.run,
                             made.tiled,  made.parts, made.shared_bytes, made.blocks,
                             gspn::task_lines(s, made), gspn::kInFlight};
  std::copy(std::begin(numbers), std::end(numbers), plan);
  return made.vector > 0 ? gspn::modelled_time(s, backward, element_bytes, device, made) : 0;
}
