// One direction of the forward pass. What becomes of its states is up to an `Output`: its row(pixel, next) takes those
// of one position by put(value, c, count), a vector at a time.
#pragma once

#include "cpu_rows.h"

namespace gspn {
namespace {

// The states are the result: h.
template <typename S>
struct StatesOutput {
  static constexpr int64_t kVectorsAhead = 16;
  S* h;  // of the first pixel
  int64_t pixel_stride;
  bool past_caches;

  struct Row {
    S *h, *next_h;
    bool past_caches;

    GSPN_INLINE void put(const Vector<Compute<S>>& value, int64_t c, int64_t count) const {
      write(value, h, next_h, c, count, past_caches);
    }
  };

  GSPN_INLINE Row row(int64_t pixel, int64_t next) const {
    return {h + pixel * pixel_stride, h + next * pixel_stride, past_caches};
  }
};

// One position of a pass: the rows of channels that it reads, and the working rows.
template <typename S>
struct ForwardRow {
  const S *x, *lam, *logits;
  const S *next_x, *next_lam, *next_logits;
  const Compute<S>*before, *here, *after;  // h[t-1, n-1 .. n+1]
  Compute<S>* state;                       // h[t, n]
};

// h[t, n] = lam x + sum over d of w_d h[t-1, n+d]
template <typename S, typename OutputRow, typename T = Compute<S>>
GSPN_INLINE void forward_vector(const ForwardRow<S>& row, const OutputRow& out, int64_t c, int64_t count,
                                const Vector<T> (&w)[3]) {
  constexpr int lanes = kLanes<T>;
  prefetch(row.next_x, c);
  prefetch(row.next_lam, c);
  const Vector<T> value = load(row.x + c, count) * load(row.lam + c, count) + w[0] * load(row.before + c, lanes) +
                          w[1] * load(row.here + c, lanes) + w[2] * load(row.after + c, lanes);
  store(value, row.state + c, lanes);
  out.put(value, c, count);
}

template <typename S, typename OutputRow>
GSPN_INLINE void forward_row(const ForwardRow<S>& row, const OutputRow& out, const Strides& at, int normalization,
                             Neighbours exists) {
  using T = Compute<S>;
  for_vectors<T>(at.channels, [&](int64_t c, int64_t count) __attribute__((always_inline)) {
    Weights<Vector<T>> weights;
    load_weights<false>(row.logits + c, at.logits_d, count, normalization, exists, weights);
    for (int d = 0; d < 3; d++) prefetch(row.next_logits + d * at.logits_d, c);
    forward_vector(row, out, c, count, weights.w);
  });
}

// The same by weights of groups, which `of_channel` has room to repeat for each channel of a group.
template <typename S, typename OutputRow, typename T = Compute<S>>
GSPN_INLINE void forward_groups(const ForwardRow<S>& row, const OutputRow& out, const Strides& at, int64_t heads,
                                int normalization, Neighbours exists, Rows<T>& of_group, Rows<T>& of_channel) {
  constexpr int lanes = kLanes<T>;
  for_vectors<T>(at.groups, [&](int64_t g, int64_t count) __attribute__((always_inline)) {
    Weights<Vector<T>> weights;
    load_weights<false>(row.logits + g, at.logits_d, count, normalization, exists, weights);
    for (int d = 0; d < 3; d++) store(weights.w[d], of_group[d] + g, lanes);
  });
  if (heads % lanes == 0) {
    for (int64_t g = 0, c = 0; g < at.groups; g++) {
      const Vector<T> w[3] = {of_group[0][g] + Vector<T>{}, of_group[1][g] + Vector<T>{}, of_group[2][g] + Vector<T>{}};
      for (const int64_t end = c + heads; c < end; c += lanes) forward_vector(row, out, c, lanes, w);
    }
    return;
  }
  for (int d = 0; d < 3; d++) expand_groups(of_group[d], at.groups, heads, of_channel[d]);
  for_vectors<T>(at.channels, [&](int64_t c, int64_t count) __attribute__((always_inline)) {
    const Vector<T> w[3] = {load(of_channel[0] + c, lanes), load(of_channel[1] + c, lanes),
                            load(of_channel[2] + c, lanes)};
    forward_vector(row, out, c, count, w);
  });
}

template <typename S, typename OutputRow>
GSPN_INLINE void start_row(const ForwardRow<S>& row, const OutputRow& out, const Strides& at) {
  for_vectors<Compute<S>>(at.channels, [&](int64_t c, int64_t count) __attribute__((always_inline)) {
    const auto value = load(row.x + c, count) * load(row.lam + c, count);
    store(value, row.state + c, kLanes<Compute<S>>);
    out.put(value, c, count);
  });
}

// `Norm` is the normalisation where the inner loop is worth a version of its own, kAnyNormalization otherwise.
template <typename S, bool PerChannel, int Norm, typename Output>
void forward_direction(const ScanShape& s, const ScanInputs& tensors, const Slice& slice, int64_t k,
                       const Output& output) {
  using T = Compute<S>;
  constexpr int lanes = kLanes<T>;
  const Strides at(s, slice, k);
  const LineWalk walk(s, s.codes[k]);
  const int normalization = Norm == kAnyNormalization ? s.normalization : Norm;
  const S* x = static_cast<const S*>(tensors.x) + at.x_start;
  const S* lam = static_cast<const S*>(tensors.lam) + at.lam_start;
  const S* logits = static_cast<const S*>(tensors.logits) + at.logits_start;
  Lines<T> lines(walk.length, at.channels);
  Rows<T> of_group(3, at.groups), of_channel(3, at.channels);
  // Far enough ahead to hide the memory's latency behind some vectors of work.
  const int64_t ahead = 1 + Output::kVectorsAhead * lanes / at.channels;

  for (int64_t t = 0; t < walk.count; t++) {
    const bool starts = t == 0 || (s.segment > 0 && t % s.segment == 0);
    lines.advance();
    for (int64_t n = 0; n < walk.length; n++) {
      const int64_t pixel = walk.pixel(t, n), next = walk.ahead(t, n, ahead);
      const ForwardRow<S> row{x + pixel * at.x_pixel,
                              lam + pixel * at.lam_pixel,
                              logits + pixel * at.logits_pixel,
                              x + next * at.x_pixel,
                              lam + next * at.lam_pixel,
                              logits + next * at.logits_pixel,
                              lines.last(n - 1),
                              lines.last(n),
                              lines.last(n + 1),
                              lines.next(n)};
      const auto out = output.row(pixel, next);
      if (starts) {
        start_row(row, out, at);
        continue;
      }
      const Neighbours exists(n, walk.length);
      if constexpr (!PerChannel)
        forward_groups(row, out, at, s.heads(), normalization, exists, of_group, of_channel);
      else if (exists.before && exists.after)
        forward_row(row, out, at, normalization, Neighbours());
      else
        forward_row(row, out, at, normalization, exists);
    }
  }
  stream_fence();
}

// Groups have a version of their own, and G = C one for its usual normalisation.
template <typename S, typename Output>
void run_forward(const ScanShape& s, const ScanInputs& tensors, const Slice& slice, int64_t k, const Output& output) {
  const auto direction = s.groups < s.channels               ? forward_direction<S, false, kAnyNormalization, Output>
                         : s.normalization == kRowStochastic ? forward_direction<S, true, kRowStochastic, Output>
                                                             : forward_direction<S, true, kAnyNormalization, Output>;
  direction(s, tensors, slice, k, output);
}

}  // namespace
}  // namespace gspn
