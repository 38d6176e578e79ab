// One direction of the forward pass.
#pragma once

#include "cpu_rows.h"

namespace gspn {
namespace {

// One position of a pass: the rows of channels that it reads and writes.
template <typename S>
struct ForwardRow {
  const S *x, *lam, *logits;
  S* h;
  const S *next_x, *next_lam, *next_logits;
  S* next_h;
  const Compute<S>*before, *here, *after;  // h[t-1, n-1 .. n+1]
  Compute<S>* state;                       // h[t, n]
};

// h[t, n] = lam x + sum over d of w_d h[t-1, n+d]
template <typename S, bool PerChannel>
GSPN_INLINE void forward_row(const ForwardRow<S>& row, const Strides& at, int normalization, Neighbours exists,
                             bool past_caches, const Compute<S>* const (&w)[3]) {
  using T = Compute<S>;
  using V = Vector<T>;
  constexpr int lanes = kLanes<T>;
  for_vectors<T>(at.channels, [&](int64_t c, int64_t count) __attribute__((always_inline)) {
    Weights<V> weights;
    if constexpr (PerChannel) {
      load_weights<false>(row.logits + c, at.logits_d, count, normalization, exists, weights);
      for (int d = 0; d < 3; d++) prefetch(row.next_logits + d * at.logits_d, c);
    } else {
      for (int d = 0; d < 3; d++) weights.w[d] = load(w[d] + c, lanes);
    }
    prefetch(row.next_x, c);
    prefetch(row.next_lam, c);
    const V value = load(row.x + c, count) * load(row.lam + c, count) + weights.w[0] * load(row.before + c, lanes) +
                    weights.w[1] * load(row.here + c, lanes) + weights.w[2] * load(row.after + c, lanes);
    store(value, row.state + c, lanes);
    write(value, row.h, row.next_h, c, count, past_caches);
  });
}

template <typename S>
GSPN_INLINE void start_row(const ForwardRow<S>& row, const Strides& at) {
  for_vectors<Compute<S>>(at.channels, [&](int64_t c, int64_t count) __attribute__((always_inline)) {
    const auto value = load(row.x + c, count) * load(row.lam + c, count);
    store(value, row.state + c, kLanes<Compute<S>>);
    store(value, row.h + c, count);
  });
}

// `Norm` is the normalisation where the inner loop is worth a version of its own, kAnyNormalization otherwise.
template <typename S, bool PerChannel, int Norm>
void forward_direction(const ScanShape& s, const ForwardTensors& tensors, const Slice& slice, int64_t k) {
  using T = Compute<S>;
  constexpr int lanes = kLanes<T>;
  const Strides at(s, slice, k);
  const LineWalk walk(s, s.codes[k]);
  const int normalization = Norm == kAnyNormalization ? s.normalization : Norm;
  const S* x = static_cast<const S*>(tensors.x) + at.x_start;
  const S* lam = static_cast<const S*>(tensors.lam) + at.lam_start;
  const S* logits = static_cast<const S*>(tensors.logits) + at.logits_start;
  S* h = static_cast<S*>(tensors.h) + at.lam_start;
  Lines<T> lines(walk.length, at.channels);
  Rows<T> of_group(3, at.groups), of_channel(3, at.channels);
  const T* const w[3] = {of_channel[0], of_channel[1], of_channel[2]};
  // Far enough ahead to hide the memory's latency behind some 16 vectors of work.
  const int64_t ahead = 1 + 16 * lanes / at.channels;

  for (int64_t t = 0; t < walk.count; t++) {
    const bool starts = t == 0 || (s.segment > 0 && t % s.segment == 0);
    lines.advance();
    for (int64_t n = 0; n < walk.length; n++) {
      const int64_t pixel = walk.pixel(t, n), next = walk.ahead(t, n, ahead);
      const ForwardRow<S> row{x + pixel * at.x_pixel,
                              lam + pixel * at.lam_pixel,
                              logits + pixel * at.logits_pixel,
                              h + pixel * at.lam_pixel,
                              x + next * at.x_pixel,
                              lam + next * at.lam_pixel,
                              logits + next * at.logits_pixel,
                              h + next * at.lam_pixel,
                              lines.last(n - 1),
                              lines.last(n),
                              lines.last(n + 1),
                              lines.next(n)};
      if (starts) {
        start_row(row, at);
        continue;
      }
      const Neighbours exists(n, walk.length);
      if constexpr (!PerChannel) {
        for_vectors<T>(at.groups, [&](int64_t g, int64_t count) __attribute__((always_inline)) {
          Weights<Vector<T>> weights;
          load_weights<false>(row.logits + g, at.logits_d, count, normalization, exists, weights);
          for (int d = 0; d < 3; d++) store(weights.w[d], of_group[d] + g, lanes);
        });
        for (int d = 0; d < 3; d++) expand_groups(of_group[d], at.groups, s.heads(), of_channel[d]);
      }
      if (exists.before && exists.after)
        forward_row<S, PerChannel>(row, at, normalization, Neighbours(), s.past_caches, w);
      else
        forward_row<S, PerChannel>(row, at, normalization, exists, s.past_caches, w);
    }
  }
  stream_fence();
}

}  // namespace
}  // namespace gspn
