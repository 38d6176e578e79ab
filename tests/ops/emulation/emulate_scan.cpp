// What tests/ops/test_cuda_emulation.py calls: plans, and scans in the emulation.
#include <sys/mman.h>

#include <stdexcept>

#include "emulator.h"
#include "scan_dispatch.cuh"

using namespace gspn;

namespace {

ScanShape shape_of(const int64_t* numbers) {
  ScanShape s{numbers[0], numbers[1], numbers[2], numbers[3], numbers[4], numbers[5], numbers[6],
              static_cast<int>(numbers[7]), {}};
  for (int k = 0; k < 4; k++) s.codes[k] = static_cast<int>(numbers[8 + k]);
  s.reads_out = numbers[12];
  return s;
}

// wanted: vector, lanes, run, tiled, segments; all zero for the plan that the op would take.
ScanPlan plan_of(const ScanShape& s, bool backward, int element_bytes, int64_t alignment, const DeviceLimits& device,
                 const int* wanted) {
  if (wanted[0] == 0) return make_plan(s, backward, element_bytes, alignment, device);
  ScanPlan plan;
  plan.vector = wanted[0];
  plan.lanes = wanted[1];
  plan.run = wanted[2];
  plan.tiled = wanted[3];
  plan.segments = wanted[4];
  complete_plan(s, backward, element_bytes, plan);
  return plan;
}

// The block that begins with `image`. All tensors begin there: those of images before it are not in memory.
EmulatedLaunch launch_from(int64_t image, const ScanShape& s, const ScanPlan& plan) {
  const int64_t tasks = (Extent(s).segments + plan.segments - 1) / plan.segments;
  const int64_t lanes = image * tasks * (s.channels / plan.vector);
  if (lanes % plan.lanes != 0) throw std::invalid_argument("the image does not begin a block");
  return {lanes / plan.lanes * (plan.tiled ? 1 : s.directions)};
}

// Float32 scratch: `count` pieces of `size` floats, each known from float `before` on. What lies before that takes
// addresses, but no memory.
struct Scratch {
  float* data = nullptr;
  int64_t bytes;

  Scratch(const char* name, int64_t count, int64_t size, int64_t before) : bytes(count * size * 4) {
    if (bytes == 0) return;
    void* pages = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (pages == MAP_FAILED) throw std::invalid_argument("no addresses for scratch");
    data = static_cast<float*>(pages);
    for (int64_t i = 0; i < count; i++) watch(name, data + i * size + before, (size - before) * 4, true);
  }
  ~Scratch() {
    if (data) munmap(data, bytes);
  }
};

// tensors: x lam logits h, and of a read-out u y; h and u may be null then.
template <typename T>
void forward(const ScanShape& s, const ScanPlan& plan, int64_t first_image, void* const* tensors) {
  const int64_t pixels = (s.batch - first_image) * s.pixels(), size = sizeof(T);
  const int64_t of_x = pixels * s.channels * size, of_lam = of_x * s.directions;
  watch("x", tensors[0], of_x, false);
  watch("lam", tensors[1], of_lam, false);
  watch("logits", tensors[2], pixels * s.directions * 3 * s.groups * size, false);
  if (tensors[3]) watch("h", tensors[3], of_lam, true);
  if (s.reads_out && tensors[4]) watch("u", tensors[4], of_lam, false);
  if (s.reads_out) watch("y", tensors[5], of_x, true);
  const int64_t before = first_image * s.pixels(), x_before = before * s.channels, before_lam = x_before * s.directions;
  const ForwardPointers<T> pointers{shifted<T>(tensors[0], x_before), shifted<T>(tensors[1], before_lam),
                                    shifted<T>(tensors[2], before * s.directions * 3 * s.groups),
                                    shifted<T>(tensors[3], before_lam),
                                    s.reads_out ? shifted<T>(tensors[4], before_lam) : nullptr,
                                    s.reads_out ? shifted<T>(tensors[5], x_before) : nullptr};
  EmulatedLaunch launch = launch_from(first_image, s, plan);
  forward_scan<T>(s, plan, pointers, launch);
}

template <typename T>
void backward(const ScanShape& s, const ScanPlan& plan, int64_t first_image, void* const* tensors) {
  const int64_t pixels = (s.batch - first_image) * s.pixels(), size = sizeof(T);
  const int64_t logits = pixels * s.directions * 3 * s.groups;
  const int64_t of_x = pixels * s.channels * size, of_lam = of_x * s.directions;
  const int count = s.reads_out ? 10 : 8;  // u and du come last, and may be null
  const char* names[] = {s.reads_out ? "grad_y" : "grad_h", "x", "lam", "logits", "h", "dx", "dlam", "dlogits", "u", "du"};
  const int64_t bytes[] = {s.reads_out ? of_x : of_lam, of_x, of_lam, logits * size, of_lam,
                           of_x,                        of_lam, logits * size, of_lam, of_lam};
  for (int i = 0; i < count; i++)
    if (tensors[i]) watch(names[i], tensors[i], bytes[i], i >= 5 && i != 8);
  const int64_t before = first_image * s.pixels(), x_before = before * s.channels;
  const int64_t logits_before = before * s.directions * 3 * s.groups;
  EmulatedLaunch launch = launch_from(first_image, s, plan);
  const Scratch dx_parts("dx_parts", needs_dx_parts(s, plan) ? s.directions : 0,
                         s.batch * s.pixels() * s.channels, x_before);
  const Scratch dlogits_parts("dlogits_parts", plan.parts > 1 ? 1 : 0, (logits_before + logits) * plan.parts,
                              logits_before * plan.parts);
  // Sums take blocks of 256 threads, of 4 elements each of dx and of 1 of dlogits.
  if (dx_parts.data) launch.later.push_back(x_before / 1024);
  if (dlogits_parts.data) launch.later.push_back(logits_before / 256);
  if ((dx_parts.data && x_before % 1024) || (dlogits_parts.data && logits_before % 256))
    throw std::invalid_argument("the image does not begin a block of a sum");
  T* all[10] = {};
  for (int i = 0; i < count; i++)
    all[i] = shifted<T>(tensors[i], bytes[i] / size / (s.batch - first_image) * first_image);
  const BackwardPointers<T> pointers{all[0], all[1], all[2], all[3], all[4],
                                     all[5], all[6], all[7], {},     dlogits_parts.data, 0, 1,
                                     all[8], all[9]};
  backward_scan<T>(s, plan, pointers, dx_parts.data, launch);
}

template <typename T>
void run(bool is_backward, const ScanShape& s, const ScanPlan& plan, int64_t first_image, void* const* tensors) {
  is_backward ? backward<T>(s, plan, first_image, tensors) : forward<T>(s, plan, first_image, tensors);
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

// Fills `out` with vector, lanes, rows, run, tiled, group_lanes, parts, shared_bytes, blocks, lines of a task.
extern "C" void plan_scan(const int64_t* shape, int is_backward, int element_bytes, int64_t alignment,
                          int multiprocessors, int shared_per_block, const int* wanted, int64_t* out) {
  const ScanPlan plan = plan_of(shape_of(shape), is_backward, element_bytes, alignment,
                                {multiprocessors, shared_per_block}, wanted);
  const int64_t numbers[] = {plan.vector, plan.lanes, plan.rows,         plan.run,   plan.tiled, plan.group_lanes,
                             plan.parts,  plan.shared_bytes, plan.blocks, task_lines(shape_of(shape), plan)};
  std::copy(std::begin(numbers), std::end(numbers), out);
}

// Whether the op would read out on the spot by that plan.
extern "C" int ask_reads_out_well(const int64_t* shape, int is_backward, int element_bytes, int64_t alignment,
                              int multiprocessors, int shared_per_block) {
  const ScanShape s = shape_of(shape);
  const DeviceLimits device{multiprocessors, shared_per_block};
  return reads_out_well(s, is_backward, element_bytes, alignment, device,
                        make_plan(s, is_backward, element_bytes, alignment, device));
}

extern "C" unsigned divide(int64_t value, unsigned n) { return Divisor::of(value).quotient(n); }

// dtype: 0 float32, 1 bfloat16, 2 float16. tensors: x lam logits h, or grad_h x lam logits h dx dlam dlogits, of the images
// from `first_image` on; those before are left out. Of a read-out also u y, or grad_y in the place of grad_h and u du.
// Returns "" or what went wrong.
extern "C" const char* emulate_scan(const int64_t* shape, int is_backward, int dtype, int64_t alignment,
                                    const int* wanted, int64_t first_image, unsigned seed, void* const* tensors) {
  static std::string result;
  const ScanShape s = shape_of(shape);
  const ScanPlan plan = plan_of(s, is_backward, dtype ? 2 : 4, alignment, {132, 227 * 1024}, wanted);
  if (plan.vector == 0) return "no plan";
  if (plan.tiled && !tiles(s)) return "a block cannot do all directions of this shape";
  reset(seed);
  try {
    run_type<float, 0>(dtype, is_backward, s, plan, first_image, tensors);
    run_type<bfloat16, 1>(dtype, is_backward, s, plan, first_image, tensors);
    run_type<float16, 2>(dtype, is_backward, s, plan, first_image, tensors);
    result = finish();
  } catch (const std::invalid_argument& mistake) {
    result = mistake.what();
  }
  return result.c_str();
}
