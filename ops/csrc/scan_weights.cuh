// From raw logits to weights and back: the maths of ../README.md for one position and one channel.
#pragma once

#include "cuda_primitives.cuh"
#include "scan_shape.h"

namespace gspn {

// w_d of the three neighbours, and 1 - sigmoid(l_d) for the gradient. A missing neighbour comes as l_d = -infinity
// (0 when there is no normalisation) and has weight 0.
struct Weights {
  float w[3], slope[3];
};

// sigmoid(l_d) / sum of sigmoid(l_d'), scaled by e^-m, m = min(0, max l_d'), so that the largest numerator is 1:
// finite and exact for every finite logit. All denominators 1 + e^-|l_d| are in [1, 2]: one division serves the three.
template <bool WithSlope>
__device__ __forceinline__ void row_stochastic(const float (&l)[3], Weights& out) {
  const float m = fminf(0.f, fmaxf(l[1], fmaxf(l[0], l[2])));
  const float scale = fast_exp(m);
  float numerator[3], denominator[3], decayed[3];
#pragma unroll
  for (int d = 0; d < 3; d++) {
    const float q = fast_exp(-fabsf(l[d]) - m);
    decayed[d] = q * scale;
    denominator[d] = 1.f + decayed[d];
    numerator[d] = l[d] >= 0.f ? 1.f : q;
  }
  const float others[3] = {denominator[1] * denominator[2], denominator[0] * denominator[2],
                           denominator[0] * denominator[1]};
  const float p0 = numerator[0] * others[0], p1 = numerator[1] * others[1], p2 = numerator[2] * others[2];
  const float inverse = fast_reciprocal(p0 + p1 + p2);
  out.w[0] = p0 * inverse;
  out.w[1] = p1 * inverse;
  out.w[2] = p2 * inverse;
  if constexpr (WithSlope) {
    const float all = fast_reciprocal(others[0] * denominator[0]);
#pragma unroll
    for (int d = 0; d < 3; d++) out.slope[d] = (l[d] >= 0.f ? decayed[d] : 1.f) * others[d] * all;
  }
}

__device__ __forceinline__ void sigmoid(const float (&l)[3], Weights& out) {
#pragma unroll
  for (int d = 0; d < 3; d++) {
    const float q = fast_exp(-fabsf(l[d]));
    const float inverse = fast_reciprocal(1.f + q);
    out.w[d] = (l[d] >= 0.f ? 1.f : q) * inverse;
    out.slope[d] = (l[d] >= 0.f ? q : 1.f) * inverse;
  }
}

template <bool WithSlope>
__device__ __forceinline__ void normalize(int normalization, const float (&l)[3], Weights& out) {
  if (normalization == kRowStochastic) {
    row_stochastic<WithSlope>(l, out);
  } else if (normalization == kSigmoid) {
    sigmoid(l, out);
  } else {
#pragma unroll
    for (int d = 0; d < 3; d++) out.w[d] = l[d], out.slope[d] = 1.f;
  }
}

// dl_d = w_d (dw_d - sum w dw) (1 - sigmoid(l_d)), and its simpler kin. Linear in dw. As the weights sum to 1, what is
// in brackets is a sum of w_d' (dw_d - dw_d'), which does not cancel when one weight is close to 1.
__device__ __forceinline__ void chain_rule(int normalization, const Weights& weights, float (&dw)[3]) {
  if (normalization == kNone) return;
  const float(&w)[3] = weights.w;
  float centred[3] = {dw[0], dw[1], dw[2]};
  if (normalization == kRowStochastic) {
    const float d01 = dw[0] - dw[1], d02 = dw[0] - dw[2], d12 = dw[1] - dw[2];
    centred[0] = w[1] * d01 + w[2] * d02;
    centred[1] = w[2] * d12 - w[0] * d01;
    centred[2] = -(w[0] * d02 + w[1] * d12);
  }
#pragma unroll
  for (int d = 0; d < 3; d++) dw[d] = w[d] * centred[d] * weights.slope[d];
}

// What stands for the logit of a neighbour that does not exist.
__device__ __forceinline__ float missing_logit(int normalization) {
  return normalization == kNone ? 0.f : -INFINITY;
}

}  // namespace gspn
