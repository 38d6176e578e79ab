// What the backward scan carries from line to line, and what it leaves for the logits.
#pragma once

#include "scan_task.cuh"
#include "scan_weights.cuh"

namespace gspn {

// What the line after sends back to this one: contributions c_d[n] = w_d g belong to n + d. Slots: for each parity of
// the line those that leave the run at its first and at its last position, then the run (Single: in registers).
template <int V, bool Single>
struct BackwardState {
  using Part = typename Slots<V>::Part;
  static constexpr int kWidth = Slots<V>::kWidth, kParts = Slots<V>::kParts, kFirst = 0, kLast = 1, kRun = 4;
  Slots<V> slots;
  int parity, parities;  // bytes before the edges of the line after; of a line's and the next one's
  Part pending[kParts];  // Single: c_0 of the line after; otherwise c_+1 of the place before

  __device__ __forceinline__ BackwardState(int run, int plane)
      : slots(Single ? kRun : kRun + run, blockDim.y, plane), parity(0), parities(2 * kParts * slots.part_stride) {
#pragma unroll
    for (int part = 0; part < kParts; part++) clear(pending[part]);
    slots.clear_all(Single ? kRun : kRun + run, 1);
  }

  __device__ __forceinline__ void read_arriving(int place, int run, int part, Part& sum) const {
    if constexpr (Single) {
#pragma unroll
      for (int i = 0; i < kWidth; i++) sum[i] = pending[part][i];
    } else {
      slots.read(kRun + place, part, 0, sum);
    }
    if (Single || place == 0) add_edge(slots.mine - slots.row_stride + edge(kLast, part, parity), sum);
    if (Single || place + 1 == run) add_edge(slots.mine + slots.row_stride + edge(kFirst, part, parity), sum);
  }

  // Bytes before it, `line` (parity or the other) after the first of the two.
  __device__ __forceinline__ int edge(int slot, int part, int line) const {
    return (slot * kParts + part) * slots.part_stride + line;
  }

  __device__ __forceinline__ void add_edge(Shared from, Part& sum) const {
    Part arriving;
    read_shared<kWidth>(from, arriving);
#pragma unroll
    for (int i = 0; i < kWidth; i++) sum[i] += arriving[i];
  }

  __device__ __forceinline__ void write_edge(int slot, int part, const Part& values) const {
    write_shared<kWidth>(slots.mine + edge(slot, part, parities - parity), values);
  }

  __device__ __forceinline__ void send(int place, int run, int part, const Part (&c)[3]) {
    if constexpr (Single) {
      write_edge(kFirst, part, c[0]);
      write_edge(kLast, part, c[2]);
#pragma unroll
      for (int i = 0; i < kWidth; i++) pending[part][i] = c[1][i];
    } else {
      Part sum;
      if (place == 0) {
        write_edge(kFirst, part, c[0]);
      } else {
        slots.read(kRun + place - 1, part, 0, sum);
#pragma unroll
        for (int i = 0; i < kWidth; i++) sum[i] += c[0][i];
        slots.write(kRun + place - 1, part, sum);
      }
#pragma unroll
      for (int i = 0; i < kWidth; i++) {
        sum[i] = c[1][i] + (place == 0 ? 0.f : pending[part][i]);
        pending[part][i] = c[2][i];
      }
      slots.write(kRun + place, part, sum);
      if (place + 1 == run) write_edge(kLast, part, pending[part]);
    }
  }

  __device__ __forceinline__ void end_line() { parity = parities - parity; }
};

// From g and h[t-1] to what goes to the line before, c_d = w_d g, and to dw (per group) or the logits (per channel).
template <typename T, int V, bool Grouped, bool RowStochastic>
struct LogitGradients {
  static constexpr int kCount = Grouped ? 1 : V, kWidth = Slots<V>::kWidth;
  float d[3][kCount];
  float w[3], slope[3];  // of the group, or of the channel at hand

  template <bool Ordinary>
  __device__ __forceinline__ void load_weights(const Logits<T, V, Grouped>& logits, int v, const Neighbours& exist,
                                               bool sigmoid) {
    float l[3];
    Mix made;
    logits.get(v, l);
    mix<RowStochastic, true, Ordinary>(l, exist, sigmoid, made);
#pragma unroll
    for (int i = 0; i < 3; i++) w[i] = made.p[i] * made.scale, slope[i] = made.slope[i];
  }

  template <bool Ordinary>
  __device__ __forceinline__ void begin(const Logits<T, V, Grouped>& logits, const Neighbours& exist, bool sigmoid) {
#pragma unroll
    for (int i = 0; i < 3; i++) clear(d[i]);
    if constexpr (Grouped) load_weights<Ordinary>(logits, 0, exist, sigmoid);
  }

  template <bool Ordinary, typename Inputs>
  __device__ __forceinline__ void add_part(const Inputs& in, int part, const Neighbours& exist, bool sigmoid,
                                           const float (&g)[kWidth], float (&c)[3][kWidth]) {
#pragma unroll
    for (int i = 0; i < kWidth; i++) {
      const int v = part * kWidth + i;
      if constexpr (!Grouped) load_weights<Ordinary>(in.logits, v, exist, sigmoid);
#pragma unroll
      for (int j = 0; j < 3; j++) {
        c[j][i] = w[j] * g[i];
        if constexpr (Grouped) d[j][0] += g[i] * in.h[j].get(v);
      }
      if constexpr (!Grouped) {
        const float factor[3] = {c[0][i] * slope[0], c[1][i] * slope[1], c[2][i] * slope[2]};
        const float h[3] = {in.h[0].get(v), in.h[1].get(v), in.h[2].get(v)};
        float dl[3];
        if constexpr (RowStochastic) chain_rule(w, factor, h, exist, dl);
#pragma unroll
        for (int j = 0; j < 3; j++) d[j][v] = RowStochastic ? dl[j] : (sigmoid ? factor[j] : g[i]) * h[j];
      }
    }
  }

  // Sums a group over its lanes; every thread of a warp must come here.
  __device__ __forceinline__ void finish(int group_lanes, const Neighbours& exist, bool sigmoid) {
    if constexpr (Grouped) {
      float dw[3] = {d[0][0], d[1][0], d[2][0]}, dl[3];
      for (int lane = group_lanes >> 1; lane > 0; lane >>= 1) {
#pragma unroll
        for (int i = 0; i < 3; i++) dw[i] += shuffle_xor(dw[i], lane);
      }
      const float factor[3] = {w[0] * slope[0], w[1] * slope[1], w[2] * slope[2]};
      if constexpr (RowStochastic) chain_rule(w, factor, dw, exist, dl);
#pragma unroll
      for (int i = 0; i < 3; i++) d[i][0] = RowStochastic ? dl[i] : sigmoid ? factor[i] * dw[i] : dw[i];
    }
  }
};

}  // namespace gspn
