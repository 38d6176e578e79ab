// The CPU backend: checks, splits the work into tasks that own their channels, and runs them on torch's threads.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <numeric>
#include <tuple>
#include <vector>

#include "scan_checks.h"
#include "scan_cpu_kernel.h"

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

Storage storage_of(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float: return kFloat32;
    case ScalarType::BFloat16: return kBFloat16;
    case ScalarType::Half: return kFloat16;
    case ScalarType::Double: return kFloat64;
    default: STD_TORCH_CHECK(false, "gspn::scan: x must be float32, bfloat16, float16 or float64");
  }
}

constexpr int64_t kCacheBytes = 32 << 20;  // of a pass that moves more, little of h is still there when it ends

bool past_caches(const ScanShape& s, const Tensor& like_h, std::initializer_list<const void*> outputs) {
  const int64_t lanes = 64 / sizeof(float);
  bool whole_lines = like_h.scalar_type() == ScalarType::Float && s.channels % lanes == 0 && s.groups % lanes == 0;
  for (const void* output : outputs) whole_lines = whole_lines && reinterpret_cast<uintptr_t>(output) % 64 == 0;
  const int64_t elements = s.batch * s.pixels() * (s.channels + s.directions * (2 * s.channels + 3 * s.groups));
  return whole_lines && elements * static_cast<int64_t>(sizeof(float)) > kCacheBytes;
}

// As many slices of whole groups as the threads need, none narrower than two cache lines of float32 channels.
std::vector<Slice> slices(const ScanShape& s, int64_t tasks_per_slice) {
  const int64_t threads = torch::stable::get_num_threads();
  const int64_t wanted = (threads + s.batch * tasks_per_slice - 1) / (s.batch * tasks_per_slice);
  // Slices begin at whole cache lines: ragged ends cost more than uneven shares, and stores past the caches need it.
  const int64_t aligned = 16 / std::gcd<int64_t>(16, s.heads());
  const int64_t narrowest = (32 + aligned * s.heads() - 1) / (aligned * s.heads()) * aligned;
  const int64_t count = std::clamp<int64_t>(s.groups / narrowest, 1, wanted);
  const int64_t groups = ((s.groups + count - 1) / count + narrowest - 1) / narrowest * narrowest;
  std::vector<Slice> result;
  for (int64_t image = 0; image < s.batch; image++)
    for (int64_t first = 0; first < s.groups; first += groups)
      result.push_back({image, first, std::min(groups, s.groups - first)});
  return result;
}

Tensor scan(const Tensor& x, const Tensor& lam, const Tensor& logits, std::vector<int64_t> directions,
            int64_t segment, int64_t normalization) {
  ScanShape shape = checked_shape(x, lam, logits, directions, segment, normalization);
  Tensor h = torch::stable::empty_like(lam);
  if (h.numel() == 0) return h;
  const ForwardTensors tensors{x.const_data_ptr(), lam.const_data_ptr(), logits.const_data_ptr(),
                               h.mutable_data_ptr()};
  shape.past_caches = past_caches(shape, h, {tensors.h});
  const auto run = kernels().forward[storage_of(x)];
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
  if (x.numel() > 0) {
    const Storage storage = storage_of(x);
    const bool rounds = storage == kBFloat16 || storage == kFloat16;
    const int64_t halves = halves_of(shape.directions);
    const ScalarType type = storage == kFloat64 ? ScalarType::Double : ScalarType::Float;
    Tensor first = rounds ? torch::stable::new_empty(x, x.sizes(), type) : dx;
    Tensor second = halves > 1 ? torch::stable::new_empty(x, x.sizes(), type) : dx;
    const BackwardTensors tensors{grad_h.const_data_ptr(),
                                  x.const_data_ptr(),
                                  lam.const_data_ptr(),
                                  logits.const_data_ptr(),
                                  h.const_data_ptr(),
                                  dlam.mutable_data_ptr(),
                                  dlogits.mutable_data_ptr(),
                                  {first.mutable_data_ptr(), halves > 1 ? second.mutable_data_ptr() : nullptr}};
    shape.past_caches = past_caches(shape, lam, {tensors.dlam, tensors.dlogits});
    const auto run = kernels().backward[storage];
    const auto parts = slices(shape, halves);
    torch::stable::parallel_for(0, parts.size() * halves, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; i++) run(shape, tensors, parts[i / halves], i % halves);
    });
    if (rounds || halves > 1)
      torch::stable::parallel_for(0, x.numel(), 1 << 15, [&](int64_t begin, int64_t end) {
        kernels().add_sums[storage](tensors.dx_sums, dx.mutable_data_ptr(), begin, end);
      });
  }
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
