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
  static constexpr int kParts = Slots<V>::kParts, kWidth = Slots<V>::kWidth;
  Slots<V> slots;
  Part here[kParts];                 // of the previous line, at n
  Part rolled[Single ? 1 : kParts];  // at n - 1, when that is in the run

  __device__ __forceinline__ explicit ForwardState(int run) { slots.clear_all(Single ? 2 : 4 + run); }

  __device__ __forceinline__ int edge(int line, bool last) const {
    return Single ? line & 1 : 2 * (line & 1) + static_cast<int>(last);
  }

  // The previous line at n - 1 and n + 1 (and, at the start of a run, at n); `line` is the line being computed.
  __device__ __forceinline__ void read(int line, int place, int run, int part, Part& before, Part& after) {
    if (Single || place == 0) {
      slots.read(edge(line - 1, true), part, -1, before);
      if constexpr (!Single) slots.read(4, part, 0, here[part]);
    } else {
#pragma unroll
      for (int i = 0; i < kWidth; i++) before[i] = rolled[part][i];
    }
    if (!Single && place + 1 < run)
      slots.read(4 + place + 1, part, 0, after);
    else
      slots.read(edge(line - 1, false), part, 1, after);
  }

  // Takes the new state at n and steps to n + 1, whose old state is `after`.
  __device__ __forceinline__ void update(int line, int place, int run, int part, const Part& state,
                                         const Part& after) {
    if (Single || place == 0) slots.write(edge(line, false), part, state);
    if constexpr (Single) {
#pragma unroll
      for (int i = 0; i < kWidth; i++) here[part][i] = state[i];
    } else {
      if (place + 1 == run) slots.write(edge(line, true), part, state);
      slots.write(4 + place, part, state);
#pragma unroll
      for (int i = 0; i < kWidth; i++) rolled[part][i] = here[part][i], here[part][i] = after[i];
    }
  }
};

// state = lam x + sum over d of w_d h_d for one part of the channels; `shared` are the weights of a group.
template <typename T, int V, bool Grouped>
__device__ __forceinline__ void combine(const ForwardInputs<T, V, Grouped>& in, int part, int normalization,
                                        const Neighbours& exist, const Mix& shared,
                                        const typename Slots<V>::Part& before,
                                        const typename Slots<V>::Part& here, const typename Slots<V>::Part& after,
                                        typename Slots<V>::Part& state) {
  constexpr int width = Slots<V>::kWidth;
  const auto add = [&](int i, const Mix& w) {
    state[i] += w.scale * (w.p[0] * before[i] + w.p[1] * here[i] + w.p[2] * after[i]);
  };
  if constexpr (Grouped) {
#pragma unroll
    for (int i = 0; i < width; i++) add(i, shared);
  } else {
    with_normalization(normalization, [&](auto constant) {
#pragma unroll
      for (int i = 0; i < width; i++) {
        float l[3];
        Mix w;
        in.logits.get(part * width + i, l);
        mix<decltype(constant)::value, false>(l, exist, w);
        add(i, w);
      }
    });
  }
}

// One item: every part of its channels, so that few of a neighbour's values are in registers at a time.
template <typename T, int V, bool Grouped, bool Single>
__device__ __forceinline__ void propagate(const ForwardInputs<T, V, Grouped>& in, int line, int place, int run,
                                          int normalization, const Neighbours& exist, ForwardState<V, Single>& past,
                                          Packed<T, V>& h) {
  constexpr int width = Slots<V>::kWidth;
  Mix shared{};
  if (Grouped && line > 0) {
    float l[3];
    in.logits.get(0, l);
    with_normalization(normalization,
                       [&](auto constant) { mix<decltype(constant)::value, false>(l, exist, shared); });
#pragma unroll
    for (int d = 0; d < 3; d++) shared.p[d] *= shared.scale;
    shared.scale = 1.f;
  }
#pragma unroll
  for (int part = 0; part < Slots<V>::kParts; part++) {
    float before[width], after[width], state[width];
#pragma unroll
    for (int i = 0; i < width; i++)
      state[i] = in.lam.get(part * width + i) * in.x.get(part * width + i);
    if (line > 0) {
      past.read(line, place, run, part, before, after);
      combine<T, V, Grouped>(in, part, normalization, exist, shared, before, past.here[part], after, state);
    } else {
      clear(after);
    }
    past.update(line, place, run, part, state, after);
#pragma unroll
    for (int i = 0; i < width; i++) h.set(part * width + i, state[i]);
  }
}

// `Depth` items are in flight for each thread: the recurrence waits for memory, never memory for the recurrence.
template <typename T, int V, bool Grouped, bool Single, int Depth>
__global__ void __maxnreg__(register_limit(false, Grouped, sizeof(T) * V, V, Single))
    scan_forward_kernel(const __grid_constant__ ScanParameters p, const __grid_constant__ ForwardPointers<T> tensors) {
  const int k = blockIdx.x % p.directions;
  const Walk& walk = p.walks[k];
  const Task<V> task(p, walk.lines, blockIdx.x / p.directions);
  const int run = Single ? 1 : p.run;
  const int lines = min(p.period, walk.lines);
  const int own_lines = task.exists ? min(lines, walk.lines - task.first_line) : 0;
  const float missing = missing_logit(p.normalization);

  const int64_t image = task.image * p.pixels;
  const int64_t lam_start = image * p.lam_stride + (k * p.channels + task.channel) * int64_t{sizeof(T)};
  const int group = task.channel / (p.channels / p.groups);
  const T* x = offset(tensors.x, image * p.x_stride) + task.channel;
  const T* logits = offset(tensors.logits, image * p.logits_stride) + k * 3 * p.groups + group;
  const auto lam_at = [&](int pixel) { return lam_start + static_cast<int64_t>(pixel) * p.lam_stride; };

  using Inputs = ForwardInputs<T, V, Grouped>;
  using Items = Cursor<Single, 1>;
  const auto fetch = [&](const Items& item, Inputs& in) {
    const int n = task.position + item.place;
    if (item.line >= own_lines || n >= walk.length) return;
    load_shared_input<T, V>(in.x, offset(x, static_cast<int64_t>(item.pixel) * p.x_stride));
    load_once<T, V>(in.lam, offset(tensors.lam, lam_at(item.pixel)));
    if (item.line > 0) {
      const T* from = offset(logits, static_cast<int64_t>(item.pixel) * p.logits_stride);
      in.logits.load(from, p.groups, n, walk.length, missing);
    }
  };

  Items ahead(walk, task.first_line, task.position, 0, p.period), item = ahead;
  Inputs ring[Depth + 1];
#pragma unroll
  for (int i = 0; i < Depth; i++) {
    fetch(ahead, ring[i]);
    ahead.advance(walk, run, p.period);
  }
  ForwardState<V, Single> past(run);
  while (item.line < lines) {
#pragma unroll
    for (int i = 0; i <= Depth; i++) {
      if (item.line >= lines) break;
      const Inputs& in = ring[i];
      fetch(ahead, ring[(i + Depth) % (Depth + 1)]);
      ahead.advance(walk, run, p.period);
      const int n = task.position + item.place;
      if (item.line < own_lines && n < walk.length) {
        Packed<T, V> rounded;
        const Neighbours exist(n, walk.length);
        propagate(in, item.line, item.place, run, p.normalization, exist, past, rounded);
        store_packed<T, V>(offset(tensors.h, lam_at(item.pixel)), rounded);
      }
      if (item.place + 1 == run) __syncthreads();
      item.advance(walk, run, p.period);
    }
  }
}

}  // namespace gspn
