// The CPU entries of scan and read-out: checks, and tasks as in scan_cpu.cpp.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <tuple>
#include <vector>

#include "cpu_entry.h"
#include "mix_checks.h"
#include "mix_cpu_kernel.h"

namespace gspn {
namespace mix {
namespace {

using torch::stable::Tensor;

const Kernels& kernels() {
  static const Kernels& chosen = chosen_kernels<Kernels>(GSPN_TABLES(gspn::mix));
  return chosen;
}

const ScanKernels& scan_kernels() {
  static const ScanKernels& chosen = chosen_kernels<ScanKernels>(GSPN_TABLES(gspn));
  return chosen;
}

std::tuple<Tensor, Tensor> mix(const Tensor& x, const Tensor& lam, const Tensor& logits, std::optional<Tensor> u,
                               std::vector<int64_t> directions, int64_t segment, int64_t normalization, bool states) {
  ScanShape shape = checked_mix(x, lam, logits, u, directions, segment, normalization);
  Tensor y = torch::stable::empty_like(x);
  Tensor h = states ? torch::stable::empty_like(lam) : nothing_like(lam);
  if (x.numel() == 0) return {y, h};
  const ForwardTensors tensors{scan_inputs(x, lam, logits), u ? u->const_data_ptr() : nullptr, y.mutable_data_ptr(),
                               states ? h.mutable_data_ptr() : nullptr};
  shape.past_caches = states && past_caches(shape, h, {tensors.h});
  const auto run = kernels().forward[storage_of(x, "x")];
  const auto parts = slices(shape, 1);
  torch::stable::parallel_for(0, parts.size(), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) run(shape, tensors, parts[i]);
  });
  return {y, h};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> mix_backward(const Tensor& grad_y, const Tensor& x, const Tensor& lam,
                                                        const Tensor& logits, std::optional<Tensor> u, const Tensor& h,
                                                        std::vector<int64_t> directions, int64_t segment,
                                                        int64_t normalization) {
  ScanShape shape = checked_mix(x, lam, logits, u, directions, segment, normalization);
  check_like(grad_y, x, "grad_y", "x");
  check_like(h, lam, "h");
  Tensor dx = torch::stable::empty_like(x);
  Tensor dlam = torch::stable::empty_like(lam);
  Tensor dlogits = torch::stable::empty_like(logits);
  Tensor du = u ? torch::stable::empty_like(*u) : nothing_like(lam);
  if (x.numel() == 0) return {dx, dlam, dlogits, du};
  const DxSums sums(x, dx, shape);
  const BackwardTensors tensors{
      grad_y.const_data_ptr(),
      u ? u->const_data_ptr() : nullptr,
      u ? du.mutable_data_ptr() : nullptr,
      {scan_inputs(x, lam, logits), h.const_data_ptr(), dlam.mutable_data_ptr(), dlogits.mutable_data_ptr(),
       {sums.data(0), sums.data(1)}}};
  shape.past_caches = past_caches(shape, lam, {tensors.du, tensors.scan.dlam, tensors.scan.dlogits});
  const auto run = kernels().backward[sums.storage];
  const auto parts = slices(shape, sums.halves);
  torch::stable::parallel_for(0, parts.size() * sums.halves, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) run(shape, tensors, parts[i / sums.halves], i % sums.halves);
  });
  sums.add_up(scan_kernels());
  return {dx, dlam, dlogits, du};
}

}  // namespace
}  // namespace mix
}  // namespace gspn

STABLE_TORCH_LIBRARY_IMPL(gspn, CPU, m) {
  m.impl("mix", TORCH_BOX(&gspn::mix::mix));
  m.impl("mix_backward", TORCH_BOX(&gspn::mix::mix_backward));
}
