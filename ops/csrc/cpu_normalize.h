// The weights of the three neighbours from raw logits, and their derivatives, a vector of channels at a time.
#pragma once

#include "scan_shape.h"
#include "simd.h"

namespace gspn {
namespace {

constexpr int kAnyNormalization = -1;

// Which neighbours of position n exist in a line: d = -1 and d = +1.
struct Neighbours {
  bool before = true, after = true;
  Neighbours() = default;
  Neighbours(int64_t n, int64_t length) : before(n > 0), after(n + 1 < length) {}
};

// Weights of the three neighbours, those that do not exist 0, and their derivative by the logits:
// dl_d = w_d (dw_d - sum w dw) slope_d when row-stochastic, dl_d = dw_d slope_d otherwise.
template <typename V>
struct Weights {
  V w[3], slope[3];
};

// With sigmoid(l_d) = n_d / D_d the quotient of sums needs one division: w_d ~ n_d times the other two D.
template <bool WithSlope, typename V>
GSPN_INLINE void divide(V (&n)[3], V (&D)[3], const V (&complement)[3], Neighbours exists, Weights<V>& out) {
  const V zero = {};
  if (!exists.before) n[0] = zero, D[0] = zero + 1;
  if (!exists.after) n[2] = zero, D[2] = zero + 1;
  const V others[3] = {D[1] * D[2], D[0] * D[2], D[0] * D[1]};
  for (int d = 0; d < 3; d++) out.w[d] = n[d] * others[d];
  const V inverse = reciprocal(out.w[0] + out.w[1] + out.w[2]);
  for (int d = 0; d < 3; d++) out.w[d] *= inverse;
  if constexpr (WithSlope) {
    const V all = reciprocal(others[2] * D[2]);
    for (int d = 0; d < 3; d++) out.slope[d] = complement[d] * others[d] * all;
  }
}

template <bool WithSlope, typename V>
GSPN_INLINE void row_stochastic(const V (&l)[3], Neighbours exists, Weights<V>& out) {
  const V zero = {};
  V n[3], D[3], complement[3];  // sigmoid = n / D, 1 - sigmoid = complement / D
  const V widest = maximum(maximum(magnitude(l[0]), magnitude(l[1])), magnitude(l[2]));
  if (__builtin_expect(!any(!(widest < 28)), 1)) {  // then e^28 cubed does not overflow: the plain sigmoid will do
    for (int d = 0; d < 3; d++) {
      n[d] = zero + 1;
      complement[d] = exp_bounded(-l[d]);
      D[d] = complement[d] + 1;
    }
    return divide<WithSlope>(n, D, complement, exists, out);
  }
  // e^-m scales the sigmoids so that the largest is at least 1/2: exact for every finite logit.
  V top = l[1];
  if (exists.before) top = maximum(top, l[0]);
  if (exists.after) top = maximum(top, l[2]);
  const V m = minimum(zero, top);
  const V t = exp_nonpositive(m);
  for (int d = 0; d < 3; d++) {
    const V q = exp_nonpositive(minimum(zero, -magnitude(l[d]) - m));
    n[d] = l[d] >= 0 ? zero + 1 : q;
    D[d] = q * t + 1;
    complement[d] = l[d] >= 0 ? q * t : zero + 1;
  }
  divide<WithSlope>(n, D, complement, exists, out);
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

}  // namespace
}  // namespace gspn
