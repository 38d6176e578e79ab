// The depthwise convolution's CPU entries: checks, and a task for each image and block of channels.
#include <torch/csrc/stable/library.h>

#include <optional>
#include <tuple>

#include "conv_checks.h"
#include "conv_cpu_kernel.h"
#include "cpu_entry.h"

namespace gspn {
namespace conv {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

const Kernels& kernels() {
  static const Kernels& chosen = chosen_kernels<Kernels>(GSPN_TABLES(gspn::conv));
  return chosen;
}

// Runs the tasks of all images, or of one, and of all blocks of channels.
template <typename Run>
void for_tasks(int64_t images, int64_t blocks, const Run& run) {
  torch::stable::parallel_for(0, images * blocks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) run(i / blocks, i % blocks);
  });
}

struct Call {
  ConvShape shape;
  Storage storage;
  int64_t lanes, blocks, taps;
  ScalarType arithmetic;

  Call(const ConvShape& s, const Tensor& x)
      : shape(s),
        storage(storage_of(x, "x")),
        lanes(kernels().lanes[storage]),
        blocks((s.channels + lanes - 1) / lanes),
        taps(int64_t{s.size} * s.size),
        arithmetic(storage == kFloat64 ? ScalarType::Double : ScalarType::Float) {}

  Tensor packed(const Tensor& weight, bool turned) const {
    Tensor result = torch::stable::new_empty(weight, {blocks * taps * lanes}, arithmetic);
    for_tasks(1, blocks, [&](int64_t, int64_t block) {
      kernels().pack[storage](shape, weight.const_data_ptr(), turned, result.mutable_data_ptr(), block);
    });
    return result;
  }

  void run(const ForwardTensors& tensors) const {
    for_tasks(shape.batch, blocks, [&](int64_t image, int64_t block) {
      kernels().forward[storage](shape, tensors, image, block);
    });
  }
};

std::tuple<Tensor, Tensor> forward(const Tensor& x, const Tensor& weight, std::optional<Tensor> bias, bool square,
                                   bool keep) {
  const Call call(checked_conv(x, weight, bias), x);
  Tensor y = torch::stable::empty_like(x);
  Tensor relu = square && keep ? torch::stable::empty_like(x) : torch::stable::new_empty(x, {0});
  if (x.numel() == 0) return {y, relu};
  const Tensor weights = call.packed(weight, false);
  call.run({x.const_data_ptr(), nullptr, weights.const_data_ptr(), bias ? bias->const_data_ptr() : nullptr,
            y.mutable_data_ptr(), square && keep ? relu.mutable_data_ptr() : nullptr, square});
  return {y, relu};
}

std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& grad_y, const Tensor& relu, const Tensor& x,
                                            const Tensor& weight, bool bias, bool square) {
  const Call call(checked_conv_backward(grad_y, relu, x, weight, square), x);
  Tensor dx = torch::stable::empty_like(x), dw = torch::stable::empty_like(weight);
  Tensor db = torch::stable::new_empty(x, {bias ? x.size(3) : 0});
  const void* positive = square ? relu.const_data_ptr() : nullptr;
  const Storage storage = call.storage;
  if (x.numel() > 0) {
    const Tensor weights = call.packed(weight, true);
    call.run({grad_y.const_data_ptr(), positive, weights.const_data_ptr(), nullptr, dx.mutable_data_ptr(), nullptr, false});
  }
  const int64_t images = x.numel() > 0 ? call.shape.batch : 0;
  const Tensor parts =
      torch::stable::new_empty(x, {images * call.blocks * (call.taps + 1) * call.lanes}, call.arithmetic);
  const GradientTensors tensors{grad_y.const_data_ptr(), positive, x.const_data_ptr(),
                                images ? parts.mutable_data_ptr() : nullptr};
  for_tasks(images, call.blocks, [&](int64_t image, int64_t block) {
    kernels().gradient[storage](call.shape, tensors, image, block);
  });
  ConvShape summed = call.shape;
  summed.batch = images;
  for_tasks(1, call.blocks, [&](int64_t, int64_t block) {
    kernels().add_parts[storage](summed, tensors.parts, dw.mutable_data_ptr(), bias ? db.mutable_data_ptr() : nullptr,
                                 block);
  });
  return {dx, dw, db};
}

}  // namespace
}  // namespace conv
}  // namespace gspn

STABLE_TORCH_LIBRARY_IMPL(gspn, CPU, m) {
  m.impl("conv", TORCH_BOX(&gspn::conv::forward));
  m.impl("conv_backward", TORCH_BOX(&gspn::conv::backward));
}
