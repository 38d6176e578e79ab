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
  const auto direction = s.groups < s.channels                 ? forward_direction<S, false, kAnyNormalization>
                         : s.normalization == kRowStochastic ? forward_direction<S, true, kRowStochastic>
                                                             : forward_direction<S, true, kAnyNormalization>;
  direction(s, tensors, slice, k);
}

template <typename S>
void backward(const ScanShape& s, const BackwardTensors& tensors, const Slice& slice) {
  using T = Compute<S>;
  const auto direction = s.groups < s.channels                 ? backward_direction<S, false, kAnyNormalization>
                         : s.normalization == kRowStochastic ? backward_direction<S, true, kRowStochastic>
                                                             : backward_direction<S, true, kAnyNormalization>;
  const Strides at(s, slice, 0);
  S* dx = static_cast<S*>(tensors.dx) + at.x_start;
  // The sum over the directions is kept in T: in dx itself where it has that type.
  constexpr bool in_place = sizeof(S) == sizeof(T);
  Rows<T> scratch(in_place ? 0 : s.pixels(), at.channels);
  T* sum = in_place ? reinterpret_cast<T*>(dx) : scratch[0];
  const int64_t sum_pixel = in_place ? at.x_pixel : scratch.stride;
  for (int64_t k = 0; k < s.directions; k++) direction(s, tensors, slice, k, sum, sum_pixel, !in_place);
  if constexpr (!in_place)
    for (int64_t pixel = 0; pixel < s.pixels(); pixel++)
      for (int64_t c = 0; c < at.channels; c += kLanes<T>)
        store(load(scratch[pixel] + c, kLanes<T>), dx + pixel * at.x_pixel + c, at.channels - c);
}

}  // namespace

const ScanKernels GSPN_KERNELS = {
    GSPN_KERNELS_NAME,
    {forward<float>, forward<BFloat16>, forward<Float16>, forward<double>},
    {backward<float>, backward<BFloat16>, backward<Float16>, backward<double>},
};

}  // namespace gspn
