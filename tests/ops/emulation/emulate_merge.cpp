// What tests/ops/test_merge_emulation.py calls: the gated merge in the emulation.
#include "emulator.h"
#include "merge.cuh"

using namespace gspn;

namespace {

template <typename T>
void run(const MergeShape& s, bool is_backward, int vector, int64_t first_pixel, void* const* tensors) {
  const int64_t of_y = (s.pixels - first_pixel) * s.channels * sizeof(T), of_h = of_y * s.directions;
  const int64_t y_before = first_pixel * s.channels, h_before = y_before * s.directions;
  EmulatedLaunch launch{first_pixel * (s.channels / vector) / kMergeThreads};
  const auto tensor = [&](int i, const char* name, bool like_y, bool output) {
    if (tensors[i]) watch(name, tensors[i], like_y ? of_y : of_h, output);
    return shifted<T>(tensors[i], like_y ? y_before : h_before);
  };
  if (is_backward) {
    const T *grad_y = tensor(0, "grad_y", true, false), *h = tensor(1, "h", false, false);
    const T* u = tensor(2, "u", false, false);
    T *dh = tensor(3, "dh", false, true), *du = tensor(4, "du", false, true);
    start_merge_backward<T>(s, vector, grad_y, h, u, dh, du, launch);
  } else {
    const T *h = tensor(0, "h", false, false), *u = tensor(1, "u", false, false);
    start_merge<T>(s, vector, h, u, tensor(2, "y", true, true), launch);
  }
}

}  // namespace

// The channels in a thread that the op would choose.
extern "C" int plan_merge(int64_t channels, int element_bytes, int64_t alignment) {
  const MergeShape s{1, 1, channels};
  return element_bytes == 4 ? merge_vector<float>(s, alignment) : merge_vector<bfloat16>(s, alignment);
}

// shape: pixels, directions, channels. dtype: 0 float32, 1 bfloat16, 2 float16. tensors: h u y, or grad_y h u dh du, of
// the pixels from `first_pixel` on; those before are left out, and must fill whole blocks. u, and du with it, may be null. Returns "" or what went wrong.
extern "C" const char* emulate_merge(const int64_t* shape, int is_backward, int dtype, int vector, int64_t first_pixel,
                                     unsigned seed, void* const* tensors) {
  static std::string result;
  const MergeShape s{shape[0], shape[1], shape[2]};
  reset(seed);
  if (dtype == 0) run<float>(s, is_backward, vector, first_pixel, tensors);
  if (dtype == 1) run<bfloat16>(s, is_backward, vector, first_pixel, tensors);
  if (dtype == 2) run<float16>(s, is_backward, vector, first_pixel, tensors);
  result = finish();
  return result.c_str();
}
