// The CPU scan for one instruction set. The build compiles this file once for each, with GSPN_KERNELS the name of
// the table to define. The maths is in ../README.md. Channels fill the vectors, lines follow one another, and a
// task owns its channels, so a result does not depend on how many threads there are.
//
// Everything here is in an unnamed namespace and no standard template is used: the linker would merge the
// instances of different instruction sets, and an old processor would meet instructions that it does not have.
#include "cpu_backward.h"
#include "cpu_forward.h"

namespace gspn {
namespace {

template <typename S>
void forward(const ScanShape& s, const ForwardTensors& tensors, const Slice& slice, int64_t k) {
  const Strides at(s, slice, k);
  const StatesOutput<S> output{static_cast<S*>(tensors.h) + at.lam_start, at.lam_pixel, s.past_caches};
  run_forward<S>(s, tensors.in, slice, k, output);
}

template <typename S>
void backward(const ScanShape& s, const BackwardTensors& tensors, const Slice& slice, int64_t half) {
  for (int64_t k = half; k < s.directions; k += halves_of(s.directions)) {
    const Strides at(s, slice, k);
    const StatesSource<S> source{static_cast<const S*>(tensors.grad_h) + at.lam_start, at.lam_pixel};
    run_backward<S>(s, tensors.scan, slice, k, source);
  }
}

template <typename S>
void add_sums(void* const (&sums)[2], void* dx, int64_t begin, int64_t end) {
  using T = Compute<S>;
  const T *first = static_cast<const T*>(sums[0]), *second = static_cast<const T*>(sums[1]);
  for_vectors<T>(end - begin, [&](int64_t i, int64_t count) __attribute__((always_inline)) {
    Vector<T> sum = load(first + begin + i, count);
    if (second) sum += load(second + begin + i, count);
    store(sum, static_cast<S*>(dx) + begin + i, count);
  });
}

}  // namespace

const ScanKernels GSPN_KERNELS = {
    GSPN_KERNELS_NAME,
    {forward<float>, forward<BFloat16>, forward<Float16>, forward<double>},
    {backward<float>, backward<BFloat16>, backward<Float16>, backward<double>},
    {add_sums<float>, add_sums<BFloat16>, add_sums<Float16>, add_sums<double>},
};

}  // namespace gspn
