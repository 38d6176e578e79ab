// From raw logits to weights and back: the maths of ../README.md for one position and one channel.
#pragma once

#include <type_traits>

#include "cuda_primitives.cuh"
#include "scan_shape.h"

namespace gspn {

// Weights w_d = p_d scale of the three neighbours, and slope_d = 1 - sigmoid(l_d) for the gradient.
struct Mix {
  float p[3], scale, slope[3];
};

// 1 for a neighbour that exists, 0 for one beyond the end of the line.
struct Neighbours {
  float before, after;
  __device__ __forceinline__ Neighbours(int n, int length)
      : before(n > 0 ? 1.f : 0.f), after(n + 1 < length ? 1.f : 0.f) {}
};

// Row-stochastic: with m = min(0, max l_d), a multiple of sigmoid(l_d) is 1 / a_d, a_d = e^m + e^(m - l_d) >= 1, and
// p_d is the product of the other two a: one division for all three. The exponent is bounded by 2^40, so that no
// product overflows; a weight is too large by 1e-12 then, at most. Finite for every finite logit: m - l_d is formed
// before it is scaled, as the rounding of a large m alone would be an exponent of its own. NaN gives NaN.
// `Ordinary`: every |l_d| is below 28. Then m = 0 does: three exponentials for four.
// A neighbour that does not exist comes as l_d = 0. It takes no share of the sum; its own w means nothing, and meets an
// h of 0, or a difference that is 0.
template <bool RowStochastic, bool WithSlope, bool Ordinary>
__device__ __forceinline__ void mix(const float (&logits)[3], const Neighbours& exist, bool sigmoid, Mix& out) {
  constexpr float log2_e = 1.4426950408889634f;
  if constexpr (RowStochastic) {
    float e[3], a[3];
    if constexpr (Ordinary) {
#pragma unroll
      for (int d = 0; d < 3; d++) e[d] = fast_exp2(logits[d] * -log2_e), a[d] = 1.f + e[d];
    } else {
      const float l[3] = {exist.before > 0.f ? logits[0] : -INFINITY, logits[1],
                          exist.after > 0.f ? logits[2] : -INFINITY};
      const float m = fminf(0.f, fmaxf(fmaxf(l[0], l[2]), l[1]));
      const float base = fast_exp2(m * log2_e);
#pragma unroll
      for (int d = 0; d < 3; d++) {
        e[d] = fast_exp2(min_or_nan((m - l[d]) * log2_e, 40.f));
        a[d] = base + e[d];
      }
    }
    out.p[0] = a[1] * a[2];
    out.p[1] = Ordinary ? fmaf(e[0], a[2], a[2]) : a[0] * a[2];  // the same, and a[0] is not needed
    out.p[2] = Ordinary ? fmaf(e[0], a[1], a[1]) : a[0] * a[1];
    out.scale = fast_reciprocal(fmaf(exist.after, out.p[2], fmaf(exist.before, out.p[0], out.p[1])));
    if constexpr (WithSlope) {
      const float all = fast_reciprocal(out.p[0] * a[0]);
#pragma unroll
      for (int d = 0; d < 3; d++) out.slope[d] = e[d] * (out.p[d] * all);
    }
  } else {
    out.scale = 1.f;
#pragma unroll
    for (int d = 0; d < 3; d++) {
      const float e = fast_exp2(min_or_nan(logits[d] * -log2_e, 125.f)), weight = fast_reciprocal(1.f + e);
      out.p[d] = sigmoid ? weight : logits[d];
      out.slope[d] = sigmoid ? e * weight : 1.f;
    }
  }
}

// Row-stochastic: dl_d = w_d (dw_d - sum w dw) (1 - sigmoid(l_d)). As the weights sum to 1, what is in the first
// brackets is a sum of w_d' (dw_d - dw_d'), which does not cancel when one weight is close to 1. `factor` is w_d (1 -
// sigmoid(l_d)) and `of` what differs from neighbour to neighbour, dw_d or h_d. One that does not exist has its `of`
// from the middle: the only difference that it makes then is that to the neighbour opposite.
__device__ __forceinline__ void chain_rule(const float (&w)[3], const float (&factor)[3], const float (&of)[3],
                                           const Neighbours& exist, float (&dl)[3]) {
  const float d01 = of[0] - of[1], d02 = (of[0] - of[2]) * (exist.before * exist.after), d12 = of[1] - of[2];
  dl[0] = factor[0] * (w[1] * d01 + w[2] * d02);
  dl[1] = factor[1] * (w[2] * d12 - w[0] * d01);
  dl[2] = -factor[2] * (w[0] * d02 + w[1] * d12);
}

// Calls `body` with whether all of a warp's logits are ordinary, as a constant; all of its threads must come here.
template <bool RowStochastic, typename Body>
__device__ __forceinline__ void with_ordinary(bool mine, Body&& body) {
  if constexpr (RowStochastic) {
    if (warp_all(mine)) return body(std::true_type());
  }
  body(std::false_type());
}

}  // namespace gspn
