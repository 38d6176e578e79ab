// h[t, n] = lam[t, n] x[t, n] + sum over d of w_d[t, n] h[t-1, n+d], all directions in one launch.
#pragma once

#include "scan_plan.h"
#include "scan_task.cuh"
#include "scan_weights.cuh"

namespace gspn {

template <typename T>
struct ForwardPointers {
  const T *x, *lam, *logits;
  T* h;
};

template <typename T, int V, bool Grouped>
struct ForwardInputs {
  Packed<T, V> x, lam;
  Logits<T, V, Grouped> logits;
};

// The state of a thread's run of positions. One position (Single) lives in registers and shared memory only shows
// it to the neighbours; longer runs live in shared memory. Slots: for each parity of the line the first and the last
// of the run (Single: they are one), then the run.
template <int V, bool Single>
struct ForwardState {
  using Part = typename Slots<V>::Part;
  static constexpr int kParts = Slots<V>::kParts;
  Slots<V> slots;
  Part here[kParts];                       // of the previous line, at n
  Part rolled[Single ? 1 : kParts];        // at n - 1, when that is in the run

  __device__ __forceinline__ ForwardState() {
#pragma unroll
    for (int part = 0; part < kParts; part++) clear(here[part]);
  }

  __device__ __forceinline__ int edge(int line, bool last) const {
    return Single ? line & 1 : 2 * (line & 1) + static_cast<int>(last);
  }

  // The previous line at n - 1 and n + 1 (and, at the start of a run, at n); `line` is the line being computed.
  __device__ __forceinline__ void read(int line, int place, int run, int part, Part& before, Part& after) {
    clear(before);
    clear(after);
    if (line == 0) return;
    if (Single || place == 0) {
      if (threadIdx.y > 0) slots.read(edge(line - 1, true), part, -1, before);
      if constexpr (!Single) slots.read(4, part, 0, here[part]);
    } else {
#pragma unroll
      for (int i = 0; i < Slots<V>::kWidth; i++) before[i] = rolled[part][i];
    }
    if (!Single && place + 1 < run) {
      slots.read(4 + place + 1, part, 0, after);
    } else if (threadIdx.y + 1 < blockDim.y) {
      slots.read(edge(line - 1, false), part, 1, after);
    }
  }

  // Takes the new state at n and steps to n + 1, whose old state is `after`.
  __device__ __forceinline__ void update(int line, int place, int run, int part, const Part& state,
                                         const Part& after) {
    if (Single || place == 0) slots.write(edge(line, false), part, state);
    if constexpr (Single) {
#pragma unroll
      for (int i = 0; i < Slots<V>::kWidth; i++) here[part][i] = state[i];
    } else {
      if (place + 1 == run) slots.write(edge(line, true), part, state);
      slots.write(4 + place, part, state);
#pragma unroll
      for (int i = 0; i < Slots<V>::kWidth; i++) rolled[part][i] = here[part][i], here[part][i] = after[i];
    }
  }
};

// One item: every part of its channels, so that few of a neighbour's values are in registers at a time.
template <typename T, int V, bool Grouped, bool Single>
__device__ __forceinline__ void propagate(const ForwardInputs<T, V, Grouped>& in, int line, int place, int run, int n,
                                          int length, int normalization, ForwardState<V, Single>& past,
                                          Packed<T, V>& h) {
  constexpr int width = Slots<V>::kWidth;
  const float missing = missing_logit(normalization);
  Weights weights;
  float l[3];
  if (Grouped && line > 0) {
    in.logits.get(0, n, length, missing, l);
    normalize<false>(normalization, l, weights);
  }
#pragma unroll
  for (int part = 0; part < Slots<V>::kParts; part++) {
    float before[width], after[width], state[width];
    past.read(line, place, run, part, before, after);
#pragma unroll
    for (int i = 0; i < width; i++) {
      const int v = part * width + i;
      state[i] = to_float(in.lam.elements[v]) * to_float(in.x.elements[v]);
      if (line == 0) continue;
      if constexpr (!Grouped) {
        in.logits.get(v, n, length, missing, l);
        normalize<false>(normalization, l, weights);
      }
      state[i] += weights.w[0] * before[i] + weights.w[1] * past.here[part][i] + weights.w[2] * after[i];
    }
    if (n >= length) clear(state);
    past.update(line, place, run, part, state, after);
#pragma unroll
    for (int i = 0; i < width; i++) round_to(h.elements[part * width + i], state[i]);
  }
}

// `Depth` items are in flight for each thread: the recurrence waits for memory, never memory for the recurrence.
template <typename T, int V, bool Grouped, bool Single, int Depth>
__global__ void __maxnreg__(register_limit(false, sizeof(T) * V, V, Single))
    scan_forward_kernel(const __grid_constant__ ScanParameters p, const __grid_constant__ ForwardPointers<T> tensors) {
  const int k = blockIdx.x % p.directions;
  const Walk& walk = p.walks[k];
  const Task<V> task(p, walk.lines, blockIdx.x / p.directions);
  const int run = Single ? 1 : p.run;
  const int lines = min(p.period, walk.lines);
  const int own_lines = task.exists ? min(lines, walk.lines - task.first_line) : 0;

  const int64_t first_pixel = task.image * p.pixels;
  const int lam_pixel = p.directions * p.channels;
  const int logits_pixel = p.directions * 3 * p.groups;
  const int group = task.channel / (p.channels / p.groups);
  const T* x = tensors.x + first_pixel * p.channels + task.channel;
  const int64_t lam_start = first_pixel * lam_pixel + k * p.channels + task.channel;
  const T* lam = tensors.lam + lam_start;
  const T* logits = tensors.logits + first_pixel * logits_pixel + k * 3 * p.groups + group;
  T* h = tensors.h + lam_start;

  using Inputs = ForwardInputs<T, V, Grouped>;
  using Items = Cursor<Single, 1>;
  const auto fetch = [&](const Items& item, Inputs& in) {
    in = Inputs();
    if (item.line >= own_lines || task.position + item.place >= walk.length) return;
    load_shared_input<T, V>(in.x, x + static_cast<int64_t>(item.pixel) * p.channels);
    load_once<T, V>(in.lam, lam + static_cast<int64_t>(item.pixel) * lam_pixel);
    if (item.line > 0) in.logits.load(logits + static_cast<int64_t>(item.pixel) * logits_pixel, p.groups);
  };

  Items ahead(p, walk, task.first_line, task.position, 0), item = ahead;
  Inputs ring[Depth];
#pragma unroll
  for (int i = 0; i < Depth; i++) {
    fetch(ahead, ring[i]);
    ahead.advance(p, walk);
  }
  ForwardState<V, Single> past;
  while (item.line < lines) {
#pragma unroll
    for (int i = 0; i < Depth; i++) {
      if (item.line >= lines) break;
      const Inputs in = ring[i];
      fetch(ahead, ring[i]);
      ahead.advance(p, walk);

      const int n = task.position + item.place;
      Packed<T, V> rounded;
      propagate(in, item.line, item.place, run, n, walk.length, p.normalization, past, rounded);
      if (item.line < own_lines && n < walk.length)
        store_packed<T, V>(h + static_cast<int64_t>(item.pixel) * lam_pixel, rounded);
      if (item.place + 1 == run) __syncthreads();
      item.advance(p, walk);
    }
  }
}

}  // namespace gspn
