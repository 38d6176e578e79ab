// What tests/ops/test_conv_emulation.py calls: plans of the depthwise convolution, and its kernels in the emulation.
#include <stdexcept>

#include "conv_dispatch.cuh"
#include "emulator.h"

using namespace gspn;
using namespace gspn::conv;

namespace {

ConvShape shape_of(const int64_t* numbers) {
  return {numbers[0], numbers[1], numbers[2], numbers[3], static_cast<int>(numbers[4])};
}

// wanted: lanes, bytes of an access, rows and images of a task; all zero for the plan that the op would take.
ConvPlan plan_of(const ConvShape& s, const ConvPass& pass, int element_bytes, int64_t alignment,
                 const DeviceLimits& device, const int* wanted) {
  if (wanted[0] == 0) return make_plan(s, pass, element_bytes, alignment, device);
  ConvPlan plan;
  plan.lanes = wanted[0];
  plan.access = wanted[1];
  plan.rows = wanted[2];
  plan.images = wanted[3];
  complete_plan(s, pass, element_bytes, plan);
  return plan;
}

// All tensors begin with `first_image`: those of images before it are not in memory.
int64_t parts_before(const ConvPlan& plan, int64_t first_image) {
  if (first_image % plan.images != 0) throw std::invalid_argument("the image does not begin a task");
  return first_image / plan.images * plan.tiles * plan.segments;
}

template <typename T>
struct Maps {
  int64_t bytes, before;

  Maps(const ConvShape& s, int64_t first_image)
      : bytes((s.batch - first_image) * s.height * s.width * s.channels * static_cast<int64_t>(sizeof(T))),
        before(first_image * s.height * s.width * s.channels) {}

  T* known(const char* name, void* data, bool output) const {
    if (data) watch(name, data, bytes, output);
    return shifted<T>(data, before);
  }
};

template <typename T>
T* known(const char* name, void* data, int64_t elements, bool output) {
  if (data) watch(name, data, elements * sizeof(T), output);
  return static_cast<T*>(data);
}

// tensors: x positive weights bias y relu; positive, bias and relu may be null.
template <typename T>
void forward(const ConvShape& s, const ConvPlan& plan, int64_t first_image, bool turned, bool square,
             void* const* tensors) {
  const Maps<T> maps(s, first_image);
  const int64_t weights = s.channels * s.size * s.size;
  const ForwardPointers<T> pointers{maps.known("x", tensors[0], false),
                                    maps.known("positive", tensors[1], false),
                                    known<T>("weights", tensors[2], weights, false),
                                    known<T>("bias", tensors[3], s.channels, false),
                                    maps.known("y", tensors[4], true),
                                    maps.known("relu", tensors[5], true),
                                    turned,
                                    square};
  EmulatedLaunch launch{plan.strips * parts_before(plan, first_image)};
  start_forward<T>(s, plan, pointers, launch);
}

// tensors: grad_y positive x dweight dbias, or, of images from `first_image` on, grad_y positive x and their parts.
template <typename T>
void gradient(const ConvShape& s, const ConvPlan& plan, int64_t first_image, void* const* tensors) {
  const Maps<T> maps(s, first_image);
  const int64_t weights = s.channels * s.size * s.size, sums = weights + s.channels;
  const int64_t before = parts_before(plan, first_image), count = plan.parts() - before;
  std::vector<float> scratch(first_image > 0 ? 0 : count * sums, NAN);
  float* const parts = first_image > 0 ? static_cast<float*>(tensors[3]) : scratch.data();
  watch("parts", parts, count * sums * 4, true);
  const GradientPointers<T> pointers{maps.known("grad_y", tensors[0], false),
                                     maps.known("positive", tensors[1], false), maps.known("x", tensors[2], false),
                                     shifted<float>(parts, before * sums)};
  EmulatedLaunch launch{plan.strips * before};
  start_gradient<T>(s, plan, pointers, launch);
  if (first_image > 0) return;
  T* const dweight = known<T>("dweight", tensors[3], weights, true);
  start_sum<T>(s, parts, count, dweight, known<T>("dbias", tensors[4], s.channels, true), launch);
}

template <typename T>
void run(bool is_gradient, const ConvShape& s, const ConvPlan& plan, int64_t first_image, bool turned, bool square,
         void* const* tensors) {
  is_gradient ? gradient<T>(s, plan, first_image, tensors)
              : forward<T>(s, plan, first_image, turned, square, tensors);
}

// Compiled only if bit `Number` of GSPN_EMULATED_TYPES is set.
template <typename T, int Number, typename... Arguments>
void run_type(int dtype, const Arguments&... arguments) {
  if (dtype != Number) return;
  if constexpr (GSPN_EMULATED_TYPES >> Number & 1)
    run<T>(arguments...);
  else
    throw std::invalid_argument("this type is not in the emulation that was built");
}

}  // namespace

// pass: 1 for the gradient of the weights, 2 more for a gate, 4 more for a second map that goes out. Fills `out` with
// lanes, bytes of an access, rows and images of a task, shared bytes, blocks, parts.
extern "C" void plan_conv(const int64_t* shape, int pass, int element_bytes, int64_t alignment, int multiprocessors,
                          int shared_per_block, int64_t* out) {
  const int as_planned[4] = {};
  const ConvPlan plan = plan_of(shape_of(shape), {(pass & 1) != 0, (pass & 2) != 0, (pass & 4) != 0}, element_bytes,
                                alignment, {multiprocessors, shared_per_block}, as_planned);
  const int64_t numbers[] = {plan.lanes,        plan.access,  plan.rows,   plan.images,
                             plan.shared_bytes, plan.blocks(), plan.parts()};
  std::copy(std::begin(numbers), std::end(numbers), out);
}

// shape: B, H, W, C, kernel. dtype: 0 float32, 1 bfloat16, 2 float16. Returns "" or what went wrong.
extern "C" const char* emulate_conv(const int64_t* shape, int is_gradient, int dtype, const int* wanted, int turned,
                                    int square, int64_t first_image, unsigned seed, void* const* tensors) {
  static std::string result;
  const ConvShape s = shape_of(shape);
  const ConvPass pass{is_gradient != 0, tensors[1] != nullptr, !is_gradient && tensors[5] != nullptr};
  reset(seed);
  try {
    const int size = dtype ? 2 : 4;
    const ConvPlan plan = plan_of(s, pass, size, 16, {132, 227 * 1024}, wanted);
    run_type<float, 0>(dtype, is_gradient, s, plan, first_image, turned, square, tensors);
    run_type<bfloat16, 1>(dtype, is_gradient, s, plan, first_image, turned, square, tensors);
    run_type<float16, 2>(dtype, is_gradient, s, plan, first_image, turned, square, tensors);
    result = finish();
  } catch (const std::invalid_argument& mistake) {
    result = mistake.what();
  }
  return result.c_str();
}
