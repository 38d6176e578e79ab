// The CPU scan for one instruction set. The build compiles this file once for each, with GSPN_KERNELS the name of
// the table to define. The maths is in ../README.md. Channels fill the vectors, lines follow one another, and a
// task owns its channels, so a result does not depend on how many threads there are.
//
// Everything here is in an unnamed namespace and no standard template is used: the linker would merge the
// instances of different instruction sets, and an old processor would meet instructions that it does not have.
#include <cstdlib>

#include "scan_cpu_kernel.h"
#include "simd.h"

namespace gspn {
namespace {

// Which neighbours of position n exist in a line: d = -1 and d = +1.
struct Neighbours {
  bool before, after;
  Neighbours(int64_t n, int64_t length) : before(n > 0), after(n + 1 < length) {}
};

// Weights of the three neighbours, those that do not exist 0, and their derivative by the logits:
// dl_d = w_d (dw_d - sum w dw) slope_d when row-stochastic, dl_d = dw_d slope_d otherwise.
template <typename V>
struct Weights {
  V w[3], slope[3];
};

template <typename V>
GSPN_INLINE V magnitude(const V& v) {
  return v < 0 ? -v : v;
}

template <bool WithSlope, typename V>
GSPN_INLINE void row_stochastic(const V (&l)[3], Neighbours exists, Weights<V>& out) {
  // e^-m scales the sigmoids so that the largest is at least 1/2: finite and exact for every finite logit.
  const V zero = {};
  V top = l[1];
  if (exists.before) top = maximum(top, l[0]);
  if (exists.after) top = maximum(top, l[2]);
  const V m = minimum(zero, top);
  const V t = exp_nonpositive(m);
  V numerator[3], denominator[3], decayed[3];
  for (int d = 0; d < 3; d++) {
    const V q = exp_nonpositive(minimum(zero, -magnitude(l[d]) - m));
    decayed[d] = q * t;
    numerator[d] = l[d] >= 0 ? zero + 1 : q;
    denominator[d] = decayed[d] + 1;
  }
  if (!exists.before) numerator[0] = zero, denominator[0] = zero + 1;
  if (!exists.after) numerator[2] = zero, denominator[2] = zero + 1;
  const V d01 = denominator[0] * denominator[1], d12 = denominator[1] * denominator[2];
  const V d02 = denominator[0] * denominator[2];
  const V p0 = numerator[0] * d12, p1 = numerator[1] * d02, p2 = numerator[2] * d01;
  const V inverse = 1 / (p0 + p1 + p2);
  out.w[0] = p0 * inverse;
  out.w[1] = p1 * inverse;
  out.w[2] = p2 * inverse;
  if constexpr (WithSlope) {
    const V all = 1 / (d01 * denominator[2]);
    const V others[3] = {d12 * all, d02 * all, d01 * all};
    for (int d = 0; d < 3; d++) out.slope[d] = (l[d] >= 0 ? decayed[d] : zero + 1) * others[d];
  }
}

template <bool WithSlope, typename V>
GSPN_INLINE void normalize(int normalization, const V (&l)[3], Neighbours exists, Weights<V>& out) {
  if (normalization == kRowStochastic) return row_stochastic<WithSlope>(l, exists, out);
  const V zero = {};
  for (int d = 0; d < 3; d++) {
    out.w[d] = l[d];
    if constexpr (WithSlope) out.slope[d] = zero + 1;
    if (normalization == kSigmoid) {
      const V q = exp_nonpositive(-magnitude(l[d]));
      out.w[d] = (l[d] >= 0 ? zero + 1 : q) / (q + 1);
      if constexpr (WithSlope) out.slope[d] = q / ((q + 1) * (q + 1));
    }
  }
  if (!exists.before) out.w[0] = out.slope[0] = zero;
  if (!exists.after) out.w[2] = out.slope[2] = zero;
}

template <typename V>
GSPN_INLINE void chain_rule(int normalization, const Weights<V>& weights, const V (&dw)[3], V (&dl)[3]) {
  V mean = {};
  if (normalization == kRowStochastic)
    mean = weights.w[0] * dw[0] + weights.w[1] * dw[1] + weights.w[2] * dw[2];
  for (int d = 0; d < 3; d++) {
    dl[d] = (dw[d] - mean) * weights.slope[d];
    if (normalization == kRowStochastic) dl[d] *= weights.w[d];
  }
}

// Rows of working memory padded to whole vectors, so that only tensors have ragged ends.
template <typename T>
struct Rows {
  int64_t stride, size;
  T* data;
  Rows(int64_t count, int64_t width)
      : stride((width + kLanes<T> - 1) / kLanes<T> * kLanes<T>), size(count * stride) {
    data = static_cast<T*>(std::aligned_alloc(64, (size * sizeof(T) / 64 + 1) * 64));
    if (!data) std::abort();  // out of memory for a few lines: nothing sensible is left to do
    clear();
  }
  Rows(const Rows&) = delete;
  ~Rows() { std::free(data); }
  T* operator[](int64_t i) { return data + i * stride; }
  void clear() { std::memset(data, 0, size * sizeof(T)); }
  void swap(Rows& other) {
    T* mine = data;
    data = other.data;
    other.data = mine;
  }
};

template <typename T>
GSPN_INLINE void expand_groups(const T* of_group, int64_t groups, int64_t heads, T* of_channel) {
  for (int64_t g = 0; g < groups; g++)
    for (int64_t j = 0; j < heads; j++) of_channel[g * heads + j] = of_group[g];
}

template <typename T>
GSPN_INLINE void sum_heads(const T* of_channel, int64_t groups, int64_t heads, T* of_group) {
  constexpr int lanes = kLanes<T>;
  for (int64_t g = 0; g < groups; g++, of_channel += heads) {
    Vector<T> partial = {};
    int64_t j = 0;
    for (; j + lanes <= heads; j += lanes) partial += load(of_channel + j, lanes);
    T sum = 0;
    for (int i = 0; i < lanes; i++) sum += partial[i];
    for (; j < heads; j++) sum += of_channel[j];
    of_group[g] = sum;
  }
}

// Where one direction of one slice finds its elements; offsets in elements, positions in pixels.
struct Strides {
  int64_t channels, groups, first_channel;
  int64_t x_pixel, lam_pixel, logits_pixel, logits_d;
  int64_t x_start, lam_start, logits_start;
  Strides(const ScanShape& s, const Slice& slice, int64_t k) {
    groups = slice.group_count;
    channels = groups * s.heads();
    first_channel = slice.first_group * s.heads();
    x_pixel = s.channels;
    lam_pixel = s.directions * s.channels;
    logits_pixel = s.directions * 3 * s.groups;
    logits_d = s.groups;
    x_start = slice.image * s.pixels() * x_pixel + first_channel;
    lam_start = slice.image * s.pixels() * lam_pixel + k * s.channels + first_channel;
    logits_start = slice.image * s.pixels() * logits_pixel + k * 3 * s.groups + slice.first_group;
  }
};

template <bool WithSlope, typename S, typename T = Compute<S>>
GSPN_INLINE void load_weights(const S* logits, const Strides& at, int64_t g, int normalization, Neighbours exists,
                              Weights<Vector<T>>& out) {
  Vector<T> l[3];
  for (int d = 0; d < 3; d++) l[d] = load(logits + d * at.logits_d + g, at.groups - g);
  normalize<WithSlope>(normalization, l, exists, out);
}

// h[t, n] = lam x + sum over d of w_d h[t-1, n+d]
template <typename S, bool PerChannel, int Norm>
void forward_direction(const ScanShape& s, const ForwardTensors& tensors, const Slice& slice, int64_t k) {
  using T = Compute<S>;
  using V = Vector<T>;
  constexpr int lanes = kLanes<T>;
  const Strides at(s, slice, k);
  const LineWalk walk(s, s.codes[k]);
  const S* x = static_cast<const S*>(tensors.x) + at.x_start;
  const S* lam = static_cast<const S*>(tensors.lam) + at.lam_start;
  const S* logits = static_cast<const S*>(tensors.logits) + at.logits_start;
  S* h = static_cast<S*>(tensors.h) + at.lam_start;
  Rows<T> previous(walk.length + 2, at.channels), current(walk.length + 2, at.channels);
  Rows<T> of_group(3, at.groups), of_channel(3, at.channels);

  for (int64_t t = 0; t < walk.count; t++) {
    const bool starts = t == 0 || (s.segment > 0 && t % s.segment == 0);
    for (int64_t n = 0; n < walk.length; n++) {
      const int64_t pixel = walk.pixel(t, n);
      const S* x_row = x + pixel * at.x_pixel;
      const S* lam_row = lam + pixel * at.lam_pixel;
      const S* logits_row = logits + pixel * at.logits_pixel;
      S* h_row = h + pixel * at.lam_pixel;
      const T *before = previous[n], *here = previous[n + 1], *after = previous[n + 2];
      T* state = current[n + 1];
      const Neighbours exists(n, walk.length);
      if (!PerChannel && !starts) {
        for (int64_t g = 0; g < at.groups; g += lanes) {
          Weights<V> weights;
          load_weights<false>(logits_row, at, g, Norm, exists, weights);
          for (int d = 0; d < 3; d++) store(weights.w[d], of_group[d] + g, lanes);
        }
        for (int d = 0; d < 3; d++) expand_groups(of_group[d], at.groups, s.heads(), of_channel[d]);
      }
      for (int64_t c = 0; c < at.channels; c += lanes) {
        const int64_t count = at.channels - c;
        V value = load(x_row + c, count) * load(lam_row + c, count);
        if (!starts) {
          Weights<V> weights;
          if constexpr (PerChannel)
            load_weights<false>(logits_row, at, c, Norm, exists, weights);
          else
            for (int d = 0; d < 3; d++) weights.w[d] = load(of_channel[d] + c, lanes);
          value += weights.w[0] * load(before + c, lanes) + weights.w[1] * load(here + c, lanes) +
                   weights.w[2] * load(after + c, lanes);
        }
        store(value, state + c, lanes);
        store(value, h_row + c, count);
      }
    }
    previous.swap(current);
  }
}

// The adjoint: g[t, n] = dh[t, n] + sum over d of w_d[t+1, n-d] g[t+1, n-d], lines in reverse. `dx` is the slice's
// own accumulator over the directions, a row of channels per pixel.
template <typename S, bool PerChannel, int Norm>
void backward_direction(const ScanShape& s, const BackwardTensors& tensors, const Slice& slice, int64_t k,
                        Compute<S>* dx, int64_t dx_pixel, bool dx_padded) {
  using T = Compute<S>;
  using V = Vector<T>;
  constexpr int lanes = kLanes<T>;
  const Strides at(s, slice, k);
  const LineWalk walk(s, s.codes[k]);
  const S* x = static_cast<const S*>(tensors.x) + at.x_start;
  const S* lam = static_cast<const S*>(tensors.lam) + at.lam_start;
  const S* logits = static_cast<const S*>(tensors.logits) + at.logits_start;
  const S* h = static_cast<const S*>(tensors.h) + at.lam_start;
  const S* grad_h = static_cast<const S*>(tensors.grad_h) + at.lam_start;
  S* dlam = static_cast<S*>(tensors.dlam) + at.lam_start;
  S* dlogits = static_cast<S*>(tensors.dlogits) + at.logits_start;
  Rows<T> arriving(walk.length + 2, at.channels), leaving(walk.length + 2, at.channels);
  Rows<T> w_group(3, at.groups), slope_group(3, at.groups), dw_group(3, at.groups);
  Rows<T> w_channel(3, at.channels), dw_channel(3, at.channels);

  for (int64_t t = walk.count - 1; t >= 0; t--) {
    const bool starts = t == 0 || (s.segment > 0 && t % s.segment == 0);
    leaving.clear();
    for (int64_t n = 0; n < walk.length; n++) {
      const int64_t pixel = walk.pixel(t, n);
      const S* x_row = x + pixel * at.x_pixel;
      const S* lam_row = lam + pixel * at.lam_pixel;
      const S* logits_row = logits + pixel * at.logits_pixel;
      const S* grad_row = grad_h + pixel * at.lam_pixel;
      S* dlam_row = dlam + pixel * at.lam_pixel;
      S* dlogits_row = dlogits + pixel * at.logits_pixel;
      T* dx_row = dx + pixel * dx_pixel;
      const Neighbours exists(n, walk.length);
      // Where the neighbour is missing its weight is 0: any readable row will do.
      const S* h_row[3] = {h + walk.pixel(t - !starts, exists.before ? n - 1 : n) * at.lam_pixel,
                           h + walk.pixel(t - !starts, n) * at.lam_pixel,
                           h + walk.pixel(t - !starts, exists.after ? n + 1 : n) * at.lam_pixel};
      if (!PerChannel && !starts) {
        for (int64_t g = 0; g < at.groups; g += lanes) {
          Weights<V> weights;
          load_weights<true>(logits_row, at, g, Norm, exists, weights);
          for (int d = 0; d < 3; d++) {
            store(weights.w[d], w_group[d] + g, lanes);
            store(weights.slope[d], slope_group[d] + g, lanes);
          }
        }
        for (int d = 0; d < 3; d++) expand_groups(w_group[d], at.groups, s.heads(), w_channel[d]);
      }
      for (int64_t c = 0; c < at.channels; c += lanes) {
        const int64_t count = at.channels - c;
        const int64_t dx_count = dx_padded ? lanes : count;
        const V gradient = load(grad_row + c, count) + load(arriving[n + 1] + c, lanes);
        store(gradient * load(x_row + c, count), dlam_row + c, count);
        V through_x = gradient * load(lam_row + c, count);
        if (k > 0) through_x += load(dx_row + c, dx_count);
        store(through_x, dx_row + c, dx_count);
        if (starts) {
          if constexpr (PerChannel)
            for (int d = 0; d < 3; d++) store(V{}, dlogits_row + d * at.logits_d + c, count);
          continue;
        }
        Weights<V> weights;
        V dw[3];
        if constexpr (PerChannel)
          load_weights<true>(logits_row, at, c, Norm, exists, weights);
        else
          for (int d = 0; d < 3; d++) weights.w[d] = load(w_channel[d] + c, lanes);
        for (int d = 0; d < 3; d++) {
          dw[d] = gradient * load(h_row[d] + c, count);
          T* to = leaving[n + d] + c;
          store(load(to, lanes) + weights.w[d] * gradient, to, lanes);
          if constexpr (!PerChannel) store(dw[d], dw_channel[d] + c, lanes);
        }
        if constexpr (PerChannel) {
          V dl[3];
          chain_rule(Norm, weights, dw, dl);
          for (int d = 0; d < 3; d++) store(dl[d], dlogits_row + d * at.logits_d + c, count);
        }
      }
      if constexpr (!PerChannel) {
        for (int d = 0; d < 3; d++) sum_heads(dw_channel[d], at.groups, s.heads(), dw_group[d]);
        for (int64_t g = 0; g < at.groups; g += lanes) {
          Weights<V> weights;
          V dw[3], dl[3] = {};
          for (int d = 0; d < 3; d++) {
            weights.w[d] = load(w_group[d] + g, lanes);
            weights.slope[d] = load(slope_group[d] + g, lanes);
            dw[d] = load(dw_group[d] + g, lanes);
          }
          if (!starts) chain_rule(Norm, weights, dw, dl);
          for (int d = 0; d < 3; d++) store(dl[d], dlogits_row + d * at.logits_d + g, at.groups - g);
        }
      }
    }
    arriving.swap(leaving);
  }
}

template <typename S, bool PerChannel>
void forward_task(const ScanShape& s, const ForwardTensors& tensors, const Slice& slice, int64_t k) {
  switch (s.normalization) {
    case kRowStochastic: return forward_direction<S, PerChannel, kRowStochastic>(s, tensors, slice, k);
    case kSigmoid: return forward_direction<S, PerChannel, kSigmoid>(s, tensors, slice, k);
    default: return forward_direction<S, PerChannel, kNone>(s, tensors, slice, k);
  }
}

template <typename S>
void forward(const ScanShape& s, const ForwardTensors& tensors, const Slice& slice, int64_t k) {
  (s.groups == s.channels ? forward_task<S, true> : forward_task<S, false>)(s, tensors, slice, k);
}

template <typename S, bool PerChannel>
void backward_task(const ScanShape& s, const BackwardTensors& tensors, const Slice& slice) {
  using T = Compute<S>;
  const Strides at(s, slice, 0);
  S* dx = static_cast<S*>(tensors.dx) + at.x_start;
  // The sum over the directions is kept in T: in dx itself where it has that type.
  constexpr bool in_place = sizeof(S) == sizeof(T);
  Rows<T> scratch(in_place ? 0 : s.pixels(), at.channels);
  T* sum = in_place ? reinterpret_cast<T*>(dx) : scratch[0];
  const int64_t sum_pixel = in_place ? at.x_pixel : scratch.stride;
  for (int64_t k = 0; k < s.directions; k++) {
    const auto direction = s.normalization == kRowStochastic ? backward_direction<S, PerChannel, kRowStochastic>
                           : s.normalization == kSigmoid     ? backward_direction<S, PerChannel, kSigmoid>
                                                             : backward_direction<S, PerChannel, kNone>;
    direction(s, tensors, slice, k, sum, sum_pixel, !in_place);
  }
  if constexpr (!in_place)
    for (int64_t pixel = 0; pixel < s.pixels(); pixel++)
      for (int64_t c = 0; c < at.channels; c += kLanes<T>)
        store(load(scratch[pixel] + c, kLanes<T>), dx + pixel * at.x_pixel + c, at.channels - c);
}

template <typename S>
void backward(const ScanShape& s, const BackwardTensors& tensors, const Slice& slice) {
  (s.groups == s.channels ? backward_task<S, true> : backward_task<S, false>)(s, tensors, slice);
}

}  // namespace

const ScanKernels GSPN_KERNELS = {
    GSPN_KERNELS_NAME,
    {forward<float>, forward<BFloat16>, forward<Float16>, forward<double>},
    {backward<float>, backward<BFloat16>, backward<Float16>, backward<double>},
};

}  // namespace gspn
