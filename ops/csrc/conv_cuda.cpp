// The depthwise convolution's CUDA entries: checks, device guard, current stream, plan, launch, launch check.
// Stable ABI only.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <tuple>

#include "conv_checks.h"
#include "conv_launch.h"
#include "cuda_entry.h"

namespace gspn {
namespace conv {

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

ConvPlan checked_plan(const ConvShape& s, const ConvPass& pass, const Tensor& x, int64_t alignment) {
  constexpr int64_t most = INT32_MAX;
  const int64_t size = x.element_size();
  STD_TORCH_CHECK(s.height <= most - s.size && s.width <= most - s.size && s.channels * size <= most,
                  "gspn: on CUDA a map has at most 2^31 - 8 rows and columns, and 2^31 - 1 bytes of channels");
  const DeviceLimits device = device_limits(x.get_device_index());
  const ConvPlan plan = make_plan(s, pass, static_cast<int>(size), alignment, device);
  STD_TORCH_CHECK(plan.lanes > 0, "gspn: the convolution does not fit this GPU's shared memory (",
                  device.shared_per_block, " bytes)");
  STD_TORCH_CHECK(plan.blocks() <= most, "gspn: the convolution needs more than 2^31 - 1 blocks; split the batch");
  return plan;
}

std::tuple<Tensor, Tensor> forward(const Tensor& x, const Tensor& weight, std::optional<Tensor> bias, bool square,
                                   bool keep) {
  const ConvShape shape = checked_conv(x, weight, bias);
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  const bool keeps = square && keep;
  Tensor y = torch::stable::empty_like(x);
  Tensor relu = keeps ? torch::stable::empty_like(x) : torch::stable::new_empty(x, {0});
  if (x.numel() == 0) return {y, relu};
  const ConvPlan plan =
      checked_plan(shape, {false, false, keeps}, x, common_alignment({&x, &y, keeps ? &relu : &y}));
  const cudaStream_t stream = current_stream(x.get_device_index());
  with_element_type(x, "x", [&](auto element) {
    using T = decltype(element);
    const ForwardPointers<T> tensors{input<T>(x), nullptr,      input<T>(weight), bias ? input<T>(*bias) : nullptr,
                                     output<T>(y), keeps ? output<T>(relu) : nullptr, false, square};
    launch_forward<T>(shape, plan, tensors, stream);
  });
  return {y, relu};
}

std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& grad_y, const Tensor& relu, const Tensor& x,
                                            const Tensor& weight, bool bias, bool square) {
  const ConvShape shape = checked_conv_backward(grad_y, relu, x, weight, square);
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  Tensor dx = torch::stable::empty_like(x), dw = torch::stable::empty_like(weight);
  Tensor db = torch::stable::new_empty(x, {bias ? x.size(3) : 0});
  if (weight.numel() == 0) return {dx, dw, db};
  const cudaStream_t stream = current_stream(x.get_device_index());
  const bool empty = x.numel() == 0;
  const Tensor& gate = square ? relu : grad_y;
  ConvPlan of_x, of_weights;
  if (!empty) {
    of_x = checked_plan(shape, {false, square, false}, x, common_alignment({&grad_y, &gate, &dx}));
    of_weights = checked_plan(shape, {true, square, false}, x, common_alignment({&grad_y, &gate, &x}));
  }
  const int64_t sums = of_weights.parts() * shape.channels * (shape.size * shape.size + 1);
  const Tensor parts = torch::stable::new_empty(x, {sums}, ScalarType::Float);
  with_element_type(x, "x", [&](auto element) {
    using T = decltype(element);
    const T* positive = square ? input<T>(relu) : nullptr;
    const ForwardPointers<T> transposed{input<T>(grad_y), positive, input<T>(weight), nullptr,
                                        output<T>(dx),    nullptr,  true,             false};
    const GradientPointers<T> tensors{input<T>(grad_y), positive, input<T>(x), empty ? nullptr : output<float>(parts)};
    if (!empty) launch_forward<T>(shape, of_x, transposed, stream);
    launch_gradient<T>(shape, empty ? nullptr : &of_weights, tensors, output<T>(dw), bias ? output<T>(db) : nullptr,
                       stream);
  });
  return {dx, dw, db};
}

}  // namespace
}  // namespace conv
}  // namespace gspn

STABLE_TORCH_LIBRARY_IMPL(gspn, CUDA, m) {
  m.impl("conv", TORCH_BOX(&gspn::conv::forward));
  m.impl("conv_backward", TORCH_BOX(&gspn::conv::backward));
}

// For benchmarks/: the plan for a device that need not be present. `shape` is B, H, W, C and the kernel's size; `pass`
// is 1 for the gradient of the weights, and 2 more for a gate, and 4 more for a second map that goes out; `plan` takes
// lanes, bytes of an access, rows and images of a task, strips, tiles, segments, stacks, shared bytes, whether the
// kernel is the usual one, rows in flight.
extern "C" __attribute__((visibility("default"))) void gspn_cuda_conv_plan(const int64_t* shape, int pass,
                                                                           int element_bytes, int multiprocessors,
                                                                           int shared_per_block, int64_t* plan) {
  using namespace gspn::conv;
  const ConvShape s{shape[0], shape[1], shape[2], shape[3], static_cast<int>(shape[4])};
  const ConvPass of{(pass & 1) != 0, (pass & 2) != 0, (pass & 4) != 0};
  const ConvPlan made = make_plan(s, of, element_bytes, 16, {multiprocessors, shared_per_block});
  const int64_t numbers[] = {made.lanes, made.access,   made.rows,   made.images,       made.strips,   made.tiles,
                             made.segments, made.stacks, made.shared_bytes, made.usual(), kPlaces - 1};
  std::copy(std::begin(numbers), std::end(numbers), plan);
}
