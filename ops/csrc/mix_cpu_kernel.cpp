// Scan and read-out for one instruction set: y = sum over k of u_k h_k as the states h arise, and backward dh_k = u_k g,
// du_k = h_k g where they are used. Compiled as scan_cpu_kernel.cpp is, and as self-contained for the same reason.
#include "mix_cpu_kernel.h"

#include <type_traits>

#include "cpu_backward.h"
#include "cpu_forward.h"

namespace gspn {
namespace mix {
namespace {

// States are read by their gates and added to the sum over the directions, which the last one rounds.
template <typename S>
struct ReadOut {
  using T = Compute<S>;
  static constexpr int64_t kVectorsAhead = 48;
  const S* u;  // of the first pixel, like all of these
  S *h, *y;
  T* sum;  // y itself, where it is of the arithmetic's type
  int64_t map_stride, y_stride, sum_stride;
  bool first, last, past_caches;

  struct Row {
    const S *u, *next_u;
    S *h, *next_h, *y;
    T *sum, *next_sum;
    bool first, last, past_caches;

    GSPN_INLINE void put(const Vector<T>& value, int64_t c, int64_t count) const {
      if (h) write(value, h, next_h, c, count, past_caches);
      prefetch_write(next_sum, c);
      Vector<T> total = first ? Vector<T>{} : load(sum + c, count);
      if (u) {
        prefetch(next_u, c);
        total += load(u + c, count) * value;
      } else {
        total += value;
      }
      if (last)
        store(total, y + c, count);
      else
        store(total, sum + c, count);
    }
  };

  GSPN_INLINE Row row(int64_t pixel, int64_t next) const {
    const int64_t here = pixel * map_stride, there = next * map_stride;
    return {u ? u + here : nullptr,   u + (u ? there : 0), h ? h + here : nullptr,
            h + (h ? there : 0),      y + pixel * y_stride, sum + pixel * sum_stride,
            sum + next * sum_stride,  first,                last,
            past_caches};
  }
};

template <typename S>
void forward(const ScanShape& s, const ForwardTensors& tensors, const Slice& slice) {
  using T = Compute<S>;
  const auto from = [](auto* tensor, int64_t start) { return tensor ? tensor + start : nullptr; };
  const Strides of_x(s, slice, 0);
  constexpr bool kRounds = !std::is_same_v<S, T>;
  Rows<T> sums(kRounds ? s.pixels() : 0, of_x.channels);
  S* y = static_cast<S*>(tensors.y) + of_x.x_start;
  for (int64_t k = 0; k < s.directions; k++) {
    const Strides at(s, slice, k);
    ReadOut<S> output{from(static_cast<const S*>(tensors.u), at.lam_start),
                      from(static_cast<S*>(tensors.h), at.lam_start),
                      y,
                      nullptr,
                      at.lam_pixel,
                      at.x_pixel,
                      at.x_pixel,
                      k == 0,
                      k + 1 == s.directions,
                      s.past_caches};
    if constexpr (kRounds)
      output.sum = sums.data, output.sum_stride = sums.stride;
    else
      output.sum = y;
    run_forward<S>(s, tensors.in, slice, k, output);
  }
}

// dh = u g, and du = h g on the way.
template <typename S>
struct ReadOutGradient {
  using T = Compute<S>;
  const S *grad_y, *u, *h;
  S* du;
  int64_t map_stride, y_stride;
  bool past_caches;

  struct Row {
    const S *grad_y, *next_grad_y, *u, *next_u, *h;
    S *du, *next_du;
    bool past_caches;

    GSPN_INLINE Vector<T> get(int64_t c, int64_t count) const {
      prefetch(next_grad_y, c);
      const Vector<T> g = load(grad_y + c, count);
      if (!u) return g;
      prefetch(next_u, c);
      write(load(h + c, count) * g, du, next_du, c, count, past_caches);
      return uncontracted(load(u + c, count) * g);
    }
  };

  GSPN_INLINE Row row(int64_t pixel, int64_t next) const {
    const int64_t here = pixel * map_stride, there = next * map_stride;
    const S *g = grad_y + pixel * y_stride, *next_g = grad_y + next * y_stride;
    if (!u) return {g, next_g, nullptr, nullptr, nullptr, nullptr, nullptr, false};
    return {g, next_g, u + here, u + there, h + here, du + here, du + there, past_caches};
  }
};

template <typename S>
void backward(const ScanShape& s, const BackwardTensors& tensors, const Slice& slice, int64_t half) {
  const auto from = [](auto* tensor, int64_t start) { return tensor ? tensor + start : nullptr; };
  for (int64_t k = half; k < s.directions; k += halves_of(s.directions)) {
    const Strides at(s, slice, k);
    const ReadOutGradient<S> source{static_cast<const S*>(tensors.grad_y) + at.x_start,
                                    from(static_cast<const S*>(tensors.u), at.lam_start),
                                    static_cast<const S*>(tensors.scan.h) + at.lam_start,
                                    from(static_cast<S*>(tensors.du), at.lam_start),
                                    at.lam_pixel,
                                    at.x_pixel,
                                    s.past_caches};
    run_backward<S>(s, tensors.scan, slice, k, source);
  }
}

}  // namespace

const Kernels GSPN_KERNELS = {
    GSPN_KERNELS_NAME,
    {forward<float>, forward<BFloat16>, forward<Float16>, forward<double>},
    {backward<float>, backward<BFloat16>, backward<Float16>, backward<double>},
};

}  // namespace mix
}  // namespace gspn
