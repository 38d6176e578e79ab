// What every entry of the CPU backend asks of its tensors, and how those of the scan share out their work.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <cstring>
#include <initializer_list>
#include <numeric>
#include <vector>

#include "scan_cpu_kernel.h"

extern "C" const char* gspn_cpu_instruction_set();  // scan_cpu.cpp

namespace gspn {

inline Storage storage_of(const torch::stable::Tensor& tensor, const char* name) {
  using torch::headeronly::ScalarType;
  switch (tensor.scalar_type()) {
    case ScalarType::Float: return kFloat32;
    case ScalarType::BFloat16: return kBFloat16;
    case ScalarType::Half: return kFloat16;
    case ScalarType::Double: return kFloat64;
    default: STD_TORCH_CHECK(false, "gspn: ", name, " must be float32, bfloat16, float16 or float64");
  }
}

// The tables of a namespace's kernels, one for each instruction set.
#if defined(__x86_64__)
#define GSPN_TABLES(space) {&space::kAvx512Kernels, &space::kAvx2Kernels, &space::kBaselineKernels}
#else
#define GSPN_TABLES(space) {&space::kBaselineKernels}
#endif

// Of these the one of the instruction set that the scan has chosen.
template <typename Kernels>
const Kernels& chosen_kernels(std::initializer_list<const Kernels*> tables) {
  for (const Kernels* table : tables)
    if (!std::strcmp(table->name, gspn_cpu_instruction_set())) return *table;
  STD_TORCH_CHECK(false, "gspn: no kernels for ", gspn_cpu_instruction_set());
}

constexpr int64_t kCacheBytes = 32 << 20;  // of a pass that moves more, little of an output is still there when it ends

inline bool past_caches(const ScanShape& s, const torch::stable::Tensor& like_h,
                        std::initializer_list<const void*> outputs) {
  using torch::headeronly::ScalarType;
  const int64_t lanes = 64 / sizeof(float);
  bool whole_lines = like_h.scalar_type() == ScalarType::Float && s.channels % lanes == 0 && s.groups % lanes == 0;
  for (const void* output : outputs) whole_lines = whole_lines && reinterpret_cast<uintptr_t>(output) % 64 == 0;
  const int64_t elements = s.batch * s.pixels() * (s.channels + s.directions * (2 * s.channels + 3 * s.groups));
  return whole_lines && elements * static_cast<int64_t>(sizeof(float)) > kCacheBytes;
}

// As many slices of whole groups as the threads need, none narrower than two cache lines of float32 channels.
inline std::vector<Slice> slices(const ScanShape& s, int64_t tasks_per_slice) {
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

inline ScanInputs scan_inputs(const torch::stable::Tensor& x, const torch::stable::Tensor& lam,
                              const torch::stable::Tensor& logits) {
  return {x.const_data_ptr(), lam.const_data_ptr(), logits.const_data_ptr()};
}

// dx in the type of the arithmetic, and in halves of the directions where there are two: dx itself is one of them if its
// type is that.
struct DxSums {
  Storage storage;
  int64_t halves;
  torch::stable::Tensor dx, first, second;

  DxSums(const torch::stable::Tensor& x, const torch::stable::Tensor& dx_, const ScanShape& s)
      : storage(storage_of(x, "x")), halves(halves_of(s.directions)), dx(dx_), first(dx_), second(dx_) {
    using torch::headeronly::ScalarType;
    const ScalarType type = storage == kFloat64 ? ScalarType::Double : ScalarType::Float;
    if (rounds()) first = torch::stable::new_empty(x, x.sizes(), type);
    if (halves > 1) second = torch::stable::new_empty(x, x.sizes(), type);
  }

  bool rounds() const { return storage == kBFloat16 || storage == kFloat16; }

  void* data(int half) const {
    if (half == 0) return first.mutable_data_ptr();
    return halves > 1 ? second.mutable_data_ptr() : nullptr;
  }

  void add_up(const ScanKernels& kernels) const {
    if (!rounds() && halves == 1) return;
    void* const sums[2] = {data(0), data(1)};
    torch::stable::parallel_for(0, dx.numel(), 1 << 15, [&](int64_t begin, int64_t end) {
      kernels.add_sums[storage](sums, dx.mutable_data_ptr(), begin, end);
    });
  }
};

}  // namespace gspn
