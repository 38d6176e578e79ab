// The gated merge for one instruction set: y = sum over k of u_k h_k, and dh_k = u_k g, du_k = h_k g. Compiled as
// scan_cpu_kernel.cpp is, and as self-contained for the same reason.
#include "merge_cpu_kernel.h"

#include "cpu_rows.h"

namespace gspn {
namespace merge {
namespace {

template <typename S>
void forward(const MergeShape& s, const ForwardTensors& tensors, int64_t begin, int64_t end) {
  using T = Compute<S>;
  for (int64_t pixel = begin; pixel < end; pixel++) {
    const int64_t first = pixel * s.directions * s.channels;
    const S *h = static_cast<const S*>(tensors.h) + first, *u = static_cast<const S*>(tensors.u) + first;
    S* y = static_cast<S*>(tensors.y) + pixel * s.channels;
    for_vectors<T>(s.channels, [&](int64_t c, int64_t count) __attribute__((always_inline)) {
      Vector<T> sum = load(u + c, count) * load(h + c, count);
      for (int64_t k = 1; k < s.directions; k++) {
        const int64_t at = k * s.channels + c;
        sum += load(u + at, count) * load(h + at, count);
      }
      store(sum, y + c, count);
    });
  }
}

template <typename S>
GSPN_INLINE void write(const Vector<Compute<S>>& v, S* to, int64_t count, bool past_caches) {
  if (past_caches)
    stream(v, to);
  else
    store(v, to, count);
}

template <typename S>
void backward(const MergeShape& s, const BackwardTensors& tensors, int64_t begin, int64_t end) {
  using T = Compute<S>;
  for (int64_t pixel = begin; pixel < end; pixel++) {
    const int64_t first = pixel * s.directions * s.channels;
    const S* grad_y = static_cast<const S*>(tensors.grad_y) + pixel * s.channels;
    const S *h = static_cast<const S*>(tensors.h) + first, *u = static_cast<const S*>(tensors.u) + first;
    S *dh = static_cast<S*>(tensors.dh) + first, *du = static_cast<S*>(tensors.du) + first;
    for (int64_t k = 0; k < s.directions; k++, h += s.channels, u += s.channels, dh += s.channels, du += s.channels)
      for_vectors<T>(s.channels, [&](int64_t c, int64_t count) __attribute__((always_inline)) {
        const Vector<T> g = load(grad_y + c, count);
        write(load(u + c, count) * g, dh + c, count, tensors.past_caches);
        write(load(h + c, count) * g, du + c, count, tensors.past_caches);
      });
  }
  stream_fence();
}

}  // namespace

const Kernels GSPN_KERNELS = {
    GSPN_KERNELS_NAME,
    {forward<float>, forward<BFloat16>, forward<Float16>, forward<double>},
    {backward<float>, backward<BFloat16>, backward<Float16>, backward<double>},
};

}  // namespace merge
}  // namespace gspn
