// The CPU backend: checks, splits the work into tasks that own their channels, and runs them on torch's threads.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdlib>
#include <cstring>
#include <tuple>
#include <vector>

#include "cpu_entry.h"
#include "scan_checks.h"

namespace gspn {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// The best instruction set of this processor; GSPN_CPU_ISA names a lesser one, for tests.
const ScanKernels& kernels() {
  static const ScanKernels& chosen = []() -> const ScanKernels& {
#if defined(__x86_64__)
    const char* wanted = std::getenv("GSPN_CPU_ISA");
    const auto allowed = [&](const ScanKernels& table) { return !wanted || !std::strcmp(wanted, table.name); };
    if (allowed(kAvx512Kernels) && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq"))
      return kAvx512Kernels;
    if (allowed(kAvx2Kernels) && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
      return kAvx2Kernels;
#endif
    return kBaselineKernels;
  }();
  return chosen;
}

Tensor scan(const Tensor& x, const Tensor& lam, const Tensor& logits, std::vector<int64_t> directions,
            int64_t segment, int64_t normalization) {
  ScanShape shape = checked_shape(x, lam, logits, directions, segment, normalization);
  Tensor h = torch::stable::empty_like(lam);
  if (h.numel() == 0) return h;
  const ForwardTensors tensors{scan_inputs(x, lam, logits), h.mutable_data_ptr()};
  shape.past_caches = past_caches(shape, h, {tensors.h});
  const auto run = kernels().forward[storage_of(x, "x")];
  const auto parts = slices(shape, shape.directions);
  torch::stable::parallel_for(0, parts.size() * shape.directions, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++)
      run(shape, tensors, parts[i / shape.directions], i % shape.directions);
  });
  return h;
}

std::tuple<Tensor, Tensor, Tensor> scan_backward(const Tensor& grad_h, const Tensor& x, const Tensor& lam,
                                                 const Tensor& logits, const Tensor& h,
                                                 std::vector<int64_t> directions, int64_t segment,
                                                 int64_t normalization) {
  ScanShape shape = checked_shape(x, lam, logits, directions, segment, normalization);
  check_like(grad_h, lam, "grad_h");
  check_like(h, lam, "h");
  Tensor dx = torch::stable::empty_like(x);
  Tensor dlam = torch::stable::empty_like(lam);
  Tensor dlogits = torch::stable::empty_like(logits);
  if (x.numel() == 0) return {dx, dlam, dlogits};
  const DxSums sums(x, dx, shape);
  const BackwardTensors tensors{
      grad_h.const_data_ptr(),
      {scan_inputs(x, lam, logits), h.const_data_ptr(), dlam.mutable_data_ptr(), dlogits.mutable_data_ptr(),
       {sums.data(0), sums.data(1)}}};
  shape.past_caches = past_caches(shape, lam, {tensors.scan.dlam, tensors.scan.dlogits});
  const auto run = kernels().backward[sums.storage];
  const auto parts = slices(shape, sums.halves);
  torch::stable::parallel_for(0, parts.size() * sums.halves, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) run(shape, tensors, parts[i / sums.halves], i % sums.halves);
  });
  sums.add_up(kernels());
  return {dx, dlam, dlogits};
}

}  // namespace
}  // namespace gspn

STABLE_TORCH_LIBRARY_IMPL(gspn, CPU, m) {
  m.impl("scan", TORCH_BOX(&gspn::scan));
  m.impl("scan_backward", TORCH_BOX(&gspn::scan_backward));
}

// For `python -m ops`: which instruction set this processor gets.
extern "C" __attribute__((visibility("default"))) const char* gspn_cpu_instruction_set() {
  return gspn::kernels().name;
}
