// One direction of the adjoint pass. What arrives from outside, dh, is up to a `Source`: its row(pixel, next) gives that of
// one position by get(c, count), a vector at a time.
#pragma once

#include "cpu_rows.h"

namespace gspn {
namespace {

// dh is given.
template <typename S>
struct StatesSource {
  const S* grad_h;  // of the first pixel
  int64_t pixel_stride;

  struct Row {
    const S *grad_h, *next_grad_h;

    GSPN_INLINE Vector<Compute<S>> get(int64_t c, int64_t count) const {
      prefetch(next_grad_h, c);
      return load(grad_h + c, count);
    }
  };

  GSPN_INLINE Row row(int64_t pixel, int64_t next) const {
    return {grad_h + pixel * pixel_stride, grad_h + next * pixel_stride};
  }
};

// One position of the adjoint pass.
template <typename S>
struct BackwardRow {
  const S *x, *lam, *logits;
  const S* h[3];  // h[t-1, n-1 .. n+1]; where a neighbour is missing its weight is 0 and any row will do
  S *dlam, *dlogits;
  Compute<S>* dx;
  const S *next_x, *next_lam, *next_logits, *next_h;
  S *next_dlam, *next_dlogits;
  const Compute<S>* arriving;  // sum over d of w_d[t+1, n-d] g[t+1, n-d]
  Compute<S>* leaving[3];      // the same for line t-1, at n-1 .. n+1
};

// dlam = g x and dx += g lam, with g = dh + what arrives from the next line.
template <typename S, typename SourceRow>
GSPN_INLINE Vector<Compute<S>> input_gradients(const BackwardRow<S>& row, const SourceRow& source, int64_t c,
                                               int64_t count, bool first, bool past_caches) {
  const auto gradient = source.get(c, count) + load(row.arriving + c, kLanes<Compute<S>>);
  write(gradient * load(row.x + c, count), row.dlam, row.next_dlam, c, count, past_caches);
  auto through_x = gradient * load(row.lam + c, count);
  if (!first) through_x += load(row.dx + c, count);
  store(through_x, row.dx + c, count);
  return gradient;
}

// dw, and what leaves for the line before: w_d g.
template <typename S, typename SourceRow, typename T = Compute<S>>
GSPN_INLINE void backward_vector(const BackwardRow<S>& row, const SourceRow& source, int64_t c, int64_t count,
                                 bool first, bool past_caches, const Vector<T> (&w)[3], Vector<T> (&dw)[3]) {
  constexpr int lanes = kLanes<T>;
  prefetch(row.next_x, c);
  prefetch(row.next_lam, c);
  prefetch(row.next_h, c);
  const Vector<T> gradient = input_gradients(row, source, c, count, first, past_caches);
  for (int d = 0; d < 3; d++) {
    dw[d] = gradient * load(row.h[d] + c, count);
    T* to = row.leaving[d] + c;
    // Positions rise, so n+1 is first reached from n: nothing to add to yet.
    const Vector<T> there = d == 2 ? Vector<T>{} : load(to, lanes);
    store(there + w[d] * gradient, to, lanes);
  }
}

template <typename S, typename SourceRow>
GSPN_INLINE void backward_row(const BackwardRow<S>& row, const SourceRow& source, const Strides& at, int normalization,
                              Neighbours exists, bool first, bool past_caches) {
  using T = Compute<S>;
  using V = Vector<T>;
  for_vectors<T>(at.channels, [&](int64_t c, int64_t count) __attribute__((always_inline)) {
    Weights<V> weights;
    V dw[3], dl[3];
    load_weights<true>(row.logits + c, at.logits_d, count, normalization, exists, weights);
    for (int d = 0; d < 3; d++) prefetch(row.next_logits + d * at.logits_d, c);
    backward_vector(row, source, c, count, first, past_caches, weights.w, dw);
    chain_rule(normalization, weights, dw, dl);
    for (int d = 0; d < 3; d++)
      write(dl[d], row.dlogits + d * at.logits_d, row.next_dlogits + d * at.logits_d, c, count, past_caches);
  });
}

// The first line of a segment: nothing leaves it and its logits have no part.
template <typename S, typename SourceRow>
GSPN_INLINE void backward_start_row(const BackwardRow<S>& row, const SourceRow& source, const Strides& at, bool first) {
  using T = Compute<S>;
  for_vectors<T>(at.channels, [&](int64_t c, int64_t count) __attribute__((always_inline)) {
    input_gradients<S>(row, source, c, count, first, false);
  });
  for (int d = 0; d < 3; d++)
    for_vectors<T>(at.groups, [&](int64_t g, int64_t count) __attribute__((always_inline)) {
      store(Vector<T>{}, row.dlogits + d * at.logits_d + g, count);
    });
}

// Working rows of the grouped form: weights and gradients by group and by channel.
template <typename T>
struct GroupRows {
  Rows<T> w_group, slope_group, dw_group, w_channel, dw_channel;
  explicit GroupRows(const Strides& at)
      : w_group(3, at.groups), slope_group(3, at.groups), dw_group(3, at.groups), w_channel(3, at.channels),
        dw_channel(3, at.channels) {}
};

template <typename S, typename T = Compute<S>>
GSPN_INLINE void group_weights(const S* logits, const Strides& at, int normalization, Neighbours exists,
                               GroupRows<T>& rows) {
  for_vectors<T>(at.groups, [&](int64_t g, int64_t count) __attribute__((always_inline)) {
    Weights<Vector<T>> weights;
    load_weights<true>(logits + g, at.logits_d, count, normalization, exists, weights);
    for (int d = 0; d < 3; d++) {
      store(weights.w[d], rows.w_group[d] + g, kLanes<T>);
      store(weights.slope[d], rows.slope_group[d] + g, kLanes<T>);
    }
  });
}

template <typename S, typename T = Compute<S>>
GSPN_INLINE void group_gradients(S* dlogits, const Strides& at, int normalization, GroupRows<T>& rows) {
  for_vectors<T>(at.groups, [&](int64_t g, int64_t count) __attribute__((always_inline)) {
    Weights<Vector<T>> weights;
    Vector<T> dw[3], dl[3];
    for (int d = 0; d < 3; d++) {
      weights.w[d] = load(rows.w_group[d] + g, kLanes<T>);
      weights.slope[d] = load(rows.slope_group[d] + g, kLanes<T>);
      dw[d] = load(rows.dw_group[d] + g, kLanes<T>);
    }
    chain_rule(normalization, weights, dw, dl);
    for (int d = 0; d < 3; d++) store(dl[d], dlogits + d * at.logits_d + g, count);
  });
}

// As backward_row, by weights of groups; the gradients of their logits are sums over a group's channels.
template <typename S, typename SourceRow, typename T = Compute<S>>
GSPN_INLINE void backward_groups(const BackwardRow<S>& row, const SourceRow& source, const Strides& at, int64_t heads,
                                 int normalization, Neighbours exists, bool first, bool past_caches,
                                 GroupRows<T>& rows) {
  using V = Vector<T>;
  constexpr int lanes = kLanes<T>;
  group_weights(row.logits, at, normalization, exists, rows);
  if (heads % lanes == 0) {
    for (int64_t g = 0, c = 0; g < at.groups; g++) {
      const V w[3] = {rows.w_group[0][g] + V{}, rows.w_group[1][g] + V{}, rows.w_group[2][g] + V{}};
      V dw[3], sum[3] = {};
      for (const int64_t end = c + heads; c < end; c += lanes) {
        backward_vector(row, source, c, lanes, first, past_caches, w, dw);
        for (int d = 0; d < 3; d++) sum[d] += uncontracted(dw[d]);
      }
      for (int d = 0; d < 3; d++) rows.dw_group[d][g] = sum_lanes<T>(sum[d]);
    }
  } else {
    for (int d = 0; d < 3; d++) expand_groups(rows.w_group[d], at.groups, heads, rows.w_channel[d]);
    for_vectors<T>(at.channels, [&](int64_t c, int64_t count) __attribute__((always_inline)) {
      const V w[3] = {load(rows.w_channel[0] + c, lanes), load(rows.w_channel[1] + c, lanes),
                      load(rows.w_channel[2] + c, lanes)};
      V dw[3];
      backward_vector(row, source, c, count, first, past_caches, w, dw);
      for (int d = 0; d < 3; d++) store(dw[d], rows.dw_channel[d] + c, lanes);
    });
    for (int d = 0; d < 3; d++) sum_heads(rows.dw_channel[d], at.groups, heads, rows.dw_group[d]);
  }
  group_gradients(row.dlogits, at, normalization, rows);
}

// The adjoint: g[t, n] = dh[t, n] + sum over d of w_d[t+1, n-d] g[t+1, n-d], lines in reverse. Each half of the
// directions has its own sum over them, (B, H, W, C) in T, which its first direction begins.
template <typename S, bool PerChannel, int Norm, typename Source>
void backward_direction(const ScanShape& s, const ScanGradients& tensors, const Slice& slice, int64_t k,
                        const Source& source) {
  using T = Compute<S>;
  const Strides at(s, slice, k);
  const LineWalk walk(s, s.codes[k]);
  const int normalization = Norm == kAnyNormalization ? s.normalization : Norm;
  const int64_t halves = halves_of(s.directions);
  const bool first = k < halves;
  const S* x = static_cast<const S*>(tensors.in.x) + at.x_start;
  const S* lam = static_cast<const S*>(tensors.in.lam) + at.lam_start;
  const S* logits = static_cast<const S*>(tensors.in.logits) + at.logits_start;
  const S* h = static_cast<const S*>(tensors.h) + at.lam_start;
  S* dlam = static_cast<S*>(tensors.dlam) + at.lam_start;
  S* dlogits = static_cast<S*>(tensors.dlogits) + at.logits_start;
  T* dx = static_cast<T*>(tensors.dx_sums[k % halves]) + at.x_start;
  Rows<T> arriving(walk.length + 2, at.channels), leaving(walk.length + 2, at.channels);
  GroupRows<T> rows(at);
  const int64_t ahead = 1 + 16 * kLanes<T> / at.channels;

  for (int64_t t = walk.count - 1; t >= 0; t--) {
    const bool starts = t == 0 || (s.segment > 0 && t % s.segment == 0);
    if (starts) leaving.clear();
    leaving.clear(0, 2);
    for (int64_t n = 0; n < walk.length; n++) {
      const Neighbours exists(n, walk.length);
      const int64_t pixel = walk.pixel(t, n), next = walk.behind(t, n, ahead);
      const int64_t before = starts ? pixel : walk.pixel(t - 1, n);
      const int64_t side = walk.position_stride * at.lam_pixel;
      const S* here = h + before * at.lam_pixel;
      const BackwardRow<S> row{
          x + pixel * at.x_pixel,
          lam + pixel * at.lam_pixel,
          logits + pixel * at.logits_pixel,
          {exists.before ? here - side : here, here, exists.after ? here + side : here},
          dlam + pixel * at.lam_pixel,
          dlogits + pixel * at.logits_pixel,
          dx + pixel * at.x_pixel,
          x + next * at.x_pixel,
          lam + next * at.lam_pixel,
          logits + next * at.logits_pixel,
          h + (next + walk.position_stride - walk.line_stride) * at.lam_pixel,
          dlam + next * at.lam_pixel,
          dlogits + next * at.logits_pixel,
          arriving[n + 1],
          {leaving[n], leaving[n + 1], leaving[n + 2]}};
      const auto from = source.row(pixel, next);
      if (starts) {
        backward_start_row(row, from, at, first);
        continue;
      }
      if constexpr (!PerChannel)
        backward_groups(row, from, at, s.heads(), normalization, exists, first, s.past_caches, rows);
      else if (exists.before && exists.after)
        backward_row(row, from, at, normalization, Neighbours(), first, s.past_caches);
      else
        backward_row(row, from, at, normalization, exists, first, s.past_caches);
    }
    arriving.swap(leaving);
  }
  stream_fence();
}

template <typename S, typename Source>
void run_backward(const ScanShape& s, const ScanGradients& tensors, const Slice& slice, int64_t k,
                  const Source& source) {
  const auto direction = s.groups < s.channels               ? backward_direction<S, false, kAnyNormalization, Source>
                         : s.normalization == kRowStochastic ? backward_direction<S, true, kRowStochastic, Source>
                                                             : backward_direction<S, true, kAnyNormalization, Source>;
  direction(s, tensors, slice, k, source);
}

}  // namespace
}  // namespace gspn
