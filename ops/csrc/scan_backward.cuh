// The adjoint scan, lines in reverse: g[t, n] = dh[t, n] + sum over d of w_d[t+1, n-d] g[t+1, n-d], and
// dlam = g x, dx = sum over directions of g lam, dw_d = g[t, n] h[t-1, n+d] carried on to the logits.
// Sums that cross threads go through float32 scratch (or one block's shared memory) in a fixed order: no atomics.
#pragma once

#include "scan_plan.h"
#include "scan_task.cuh"
#include "scan_weights.cuh"

namespace gspn {

template <typename T>
struct BackwardPointers {
  const T *grad_h, *x, *lam, *logits, *h;
  T *dx, *dlam, *dlogits;
  float* dx_parts[4];    // each direction's (B, H, W, C), or null: one direction, or tiled
  float* dlogits_parts;  // (B, H, W, K, 3, G, parts), or null: each group lies within the lanes summed by shuffles
  int group_lanes;       // neighbouring lanes, a power of two, that are summed by shuffles
  int parts;             // partial sums of a group that remain
};

template <typename T, int V, bool Grouped>
struct BackwardInputs {
  Packed<T, V> grad_h, x, lam, h[3];
  Logits<T, V, Grouped> logits;
};

// What the line after sends back to this one: contributions c_d[n] = w_d g belong to n + d. Slots: for each parity of
// the line those that leave the run at its first and at its last position, then the run (Single: in registers).
template <int V, bool Single>
struct BackwardState {
  using Part = typename Slots<V>::Part;
  static constexpr int kWidth = Slots<V>::kWidth, kParts = Slots<V>::kParts;
  Slots<V> slots;
  Part pending[kParts];  // Single: c_0 of the line after; otherwise c_+1 of the place before

  __device__ __forceinline__ explicit BackwardState(int run) {
#pragma unroll
    for (int part = 0; part < kParts; part++) clear(pending[part]);
    slots.clear_all(Single ? 4 : 4 + run);
  }

  __device__ __forceinline__ int edge(int line, bool last) const { return 2 * (line & 1) + static_cast<int>(last); }

  __device__ __forceinline__ void read_arriving(int line, int place, int run, int part, Part& sum) const {
    if constexpr (Single) {
#pragma unroll
      for (int i = 0; i < kWidth; i++) sum[i] = pending[part][i];
    } else {
      slots.read(4 + place, part, 0, sum);
    }
    if (Single || place == 0) add_edge(edge(line + 1, true), part, -1, sum);
    if (Single || place + 1 == run) add_edge(edge(line + 1, false), part, 1, sum);
  }

  __device__ __forceinline__ void add_edge(int slot, int part, int rows, Part& sum) const {
    Part arriving;
    slots.read(slot, part, rows, arriving);
#pragma unroll
    for (int i = 0; i < kWidth; i++) sum[i] += arriving[i];
  }

  __device__ __forceinline__ void send(int line, int place, int run, int part, const Part (&c)[3]) {
    if constexpr (Single) {
      slots.write(edge(line, false), part, c[0]);
      slots.write(edge(line, true), part, c[2]);
#pragma unroll
      for (int i = 0; i < kWidth; i++) pending[part][i] = c[1][i];
    } else {
      Part sum;
      if (place == 0) {
        slots.write(edge(line, false), part, c[0]);
      } else {
        slots.read(4 + place - 1, part, 0, sum);
#pragma unroll
        for (int i = 0; i < kWidth; i++) sum[i] += c[0][i];
        slots.write(4 + place - 1, part, sum);
      }
#pragma unroll
      for (int i = 0; i < kWidth; i++) {
        sum[i] = c[1][i] + (place == 0 ? 0.f : pending[part][i]);
        pending[part][i] = c[2][i];
      }
      slots.write(4 + place, part, sum);
      if (place + 1 == run) slots.write(edge(line, true), part, pending[part]);
    }
  }
};

// From g and h[t-1] to what goes to the line before, c_d = w_d g, and to dw (per group) or the logits (per channel).
template <typename T, int V, bool Grouped>
struct LogitGradients {
  static constexpr int kCount = Grouped ? 1 : V, kWidth = Slots<V>::kWidth;
  float d[3][kCount];
  float w[3], slope[3];  // of the group, or of the channel at hand

  template <int Normalization>
  __device__ __forceinline__ void load_weights(const BackwardInputs<T, V, Grouped>& in, int v,
                                               const Neighbours& exist) {
    float l[3];
    Mix made;
    in.logits.get(v, l);
    mix<Normalization, true>(l, exist, made);
#pragma unroll
    for (int i = 0; i < 3; i++) w[i] = made.p[i] * made.scale, slope[i] = made.slope[i];
  }

  __device__ __forceinline__ void begin(const BackwardInputs<T, V, Grouped>& in, int normalization,
                                        const Neighbours& exist) {
#pragma unroll
    for (int i = 0; i < 3; i++) clear(d[i]);
    if constexpr (Grouped)
      with_normalization(normalization,
                         [&](auto constant) { load_weights<decltype(constant)::value>(in, 0, exist); });
  }

  template <int Normalization>
  __device__ __forceinline__ void add_channel(const BackwardInputs<T, V, Grouped>& in, int v,
                                              const Neighbours& exist, float g, int i, float (&c)[3][kWidth]) {
    if constexpr (!Grouped) load_weights<Normalization>(in, v, exist);
    float dw[3];
#pragma unroll
    for (int j = 0; j < 3; j++) {
      c[j][i] = w[j] * g;
      dw[j] = g * in.h[j].get(v);
      if constexpr (Grouped) d[j][0] += dw[j];
    }
    if constexpr (!Grouped) {
      chain_rule<Normalization>(w, slope, dw);
#pragma unroll
      for (int j = 0; j < 3; j++) d[j][v] = dw[j];
    }
  }

  __device__ __forceinline__ void add_part(const BackwardInputs<T, V, Grouped>& in, int part, int normalization,
                                           const Neighbours& exist, const float (&g)[kWidth],
                                           float (&c)[3][kWidth]) {
    if constexpr (Grouped) {
#pragma unroll
      for (int i = 0; i < kWidth; i++) add_channel<kNone>(in, part * kWidth + i, exist, g[i], i, c);
    } else {
      with_normalization(normalization, [&](auto constant) {
#pragma unroll
        for (int i = 0; i < kWidth; i++)
          add_channel<decltype(constant)::value>(in, part * kWidth + i, exist, g[i], i, c);
      });
    }
  }

  // Sums a group over its lanes; every thread of a warp must come here.
  __device__ __forceinline__ void finish(int normalization, int group_lanes, bool restart) {
    if constexpr (Grouped) {
      if (restart) return;
      float dw[3];
#pragma unroll
      for (int i = 0; i < 3; i++) {
        dw[i] = d[i][0];
        for (int lane = group_lanes / 2; lane > 0; lane /= 2) dw[i] += shuffle_xor(dw[i], lane);
      }
      with_normalization(normalization,
                         [&](auto constant) { chain_rule<decltype(constant)::value>(w, slope, dw); });
#pragma unroll
      for (int i = 0; i < 3; i++) d[i][0] = dw[i];
    }
  }
};

template <typename T, int V>
__device__ __forceinline__ void store_rounded(T* to, const float (&values)[V]) {
  Packed<T, V> rounded;
#pragma unroll
  for (int v = 0; v < V; v++) rounded.set(v, values[v]);
  store_packed<T, V>(to, rounded);
}

template <int N>
__device__ __forceinline__ void store_floats(float* to, const float (&values)[N]) {
  Packed<float, N> packed;
#pragma unroll
  for (int i = 0; i < N; i++) packed.set(i, values[i]);
  store_packed<float, N>(to, packed);
}

// Sums dx over the directions of a tiled block in shared memory; the last direction leaves with the sum in `values`.
template <int V>
__device__ __forceinline__ void sum_in_tile(float* tile, int pixel, int part, int k, int directions,
                                            typename Slots<V>::Part& values) {
  constexpr int width = Slots<V>::kWidth;
  if (directions == 1) return;
  float* at = tile + ((static_cast<int64_t>(pixel) * Slots<V>::kParts + part) * blockDim.x + threadIdx.x) * width;
  if (k > 0) {
    float sum[width];
    read_shared<width>(at, sum);
#pragma unroll
    for (int i = 0; i < width; i++) values[i] += sum[i];
  }
  if (k + 1 < directions) write_shared<width>(at, values);
}

template <typename T, int V, bool Grouped, bool Single>
struct Backward {
  const ScanParameters& p;
  const BackwardPointers<T>& tensors;
  const int k;
  const Walk& walk;
  const int lines;
  int own_lines, first_line, position;
  int part;  // which of its group's sums this thread writes; -1: none
  int64_t x_start, lam_start, logits_start;  // bytes of the first pixel
  using Inputs = BackwardInputs<T, V, Grouped>;
  using Items = Cursor<Single, -1>;
  static constexpr int kWidth = Slots<V>::kWidth;

  __device__ __forceinline__ Backward(const ScanParameters& parameters, const BackwardPointers<T>& pointers,
                                      int direction, int64_t tile)
      : p(parameters),
        tensors(pointers),
        k(direction),
        walk(parameters.walks[direction]),
        lines(parameters.tiled ? walk.lines : min(parameters.period, walk.lines)) {
    const Task<V> task(p, walk.lines, tile);
    own_lines = task.exists ? min(lines, walk.lines - task.first_line) : 0;
    first_line = task.first_line;
    position = task.position;
    const int heads = p.channels / p.groups, group = task.channel / heads;
    const int lane = task.channel % heads / V;
    part = lane % tensors.group_lanes == 0 ? lane / tensors.group_lanes : -1;
    const int64_t image = task.image * p.pixels, size = sizeof(T);
    x_start = image * p.x_stride + task.channel * size;
    lam_start = image * p.lam_stride + (k * p.channels + task.channel) * size;
    logits_start = image * p.logits_stride + (k * 3 * p.groups + group) * size;
  }

  __device__ __forceinline__ int run() const { return Single ? 1 : p.run; }

  __device__ __forceinline__ bool exists(const Items& item) const {
    return item.line >= 0 && item.line < own_lines && position + item.place < walk.length;
  }

  __device__ __forceinline__ int64_t lam_at(int pixel) const {
    return lam_start + static_cast<int64_t>(pixel) * p.lam_stride;
  }

  __device__ __forceinline__ void fetch(const Items& item, Inputs& in) const {
    if (!exists(item)) return;
    const int64_t at = lam_at(item.pixel);
    load_once<T, V>(in.grad_h, offset(tensors.grad_h, at));
    load_shared_input<T, V>(in.x, offset(tensors.x, x_start + static_cast<int64_t>(item.pixel) * p.x_stride));
    load_once<T, V>(in.lam, offset(tensors.lam, at));
    if (item.phase == 0) return;
    const int n = position + item.place, past = item.pixel - walk.line_stride;
    const int64_t logits_at = logits_start + static_cast<int64_t>(item.pixel) * p.logits_stride;
    in.logits.load(offset(tensors.logits, logits_at), p.groups, n, walk.length, missing_logit(p.normalization));
    load_shared_input<T, V>(in.h[1], offset(tensors.h, lam_at(past)));
    load_neighbour(in.h[0], n > 0, past - walk.position_stride);
    load_neighbour(in.h[2], n + 1 < walk.length, past + walk.position_stride);
  }

  __device__ __forceinline__ void load_neighbour(Packed<T, V>& h, bool is_there, int pixel) const {
    if (is_there) {
      load_shared_input<T, V>(h, offset(tensors.h, lam_at(pixel)));
    } else {
      h.fill(0.f);
    }
  }

  // Leaves in `values` what belongs to the final dx, if this direction is to write it.
  __device__ __forceinline__ void add_dx(const Items& item, int part, float (&values)[kWidth]) const {
    if (tensors.dx_parts[0]) {
      const int64_t at = (x_start + static_cast<int64_t>(item.pixel) * p.x_stride) * (sizeof(float) / sizeof(T));
      store_floats(offset(tensors.dx_parts[k] + part * kWidth, at), values);
    } else {
      sum_in_tile<V>(shared_memory() + p.tile_offset, item.pixel, part, k, p.directions, values);
    }
  }

  __device__ __forceinline__ bool writes_dx() const {
    return !tensors.dx_parts[0] && (!p.tiled || k + 1 == p.directions);
  }

  // A logit of a neighbour that does not exist has no gradient, not even a rounding error.
  __device__ __forceinline__ void store_dlogits(const Items& item, LogitGradients<T, V, Grouped>& gradients) const {
    const int n = position + item.place;
    if (n == 0) clear(gradients.d[0]);
    if (n + 1 == walk.length) clear(gradients.d[2]);
    const int64_t at = logits_start + static_cast<int64_t>(item.pixel) * p.logits_stride;
    if constexpr (!Grouped) {
#pragma unroll
      for (int i = 0; i < 3; i++)
        store_rounded<T, V>(offset(tensors.dlogits, at) + static_cast<int64_t>(i) * p.groups, gradients.d[i]);
    } else {
      if (part < 0) return;
#pragma unroll
      for (int i = 0; i < 3; i++) {
        const int64_t element = at / int64_t{sizeof(T)} + static_cast<int64_t>(i) * p.groups;
        if (tensors.dlogits_parts)
          store_floats<1>(tensors.dlogits_parts + element * tensors.parts + part, gradients.d[i]);
        else
          store_rounded<T, 1>(tensors.dlogits + element, gradients.d[i]);
      }
    }
  }

  // g, and from it dlam and dx.
  __device__ __forceinline__ void receive(const Items& item, const Inputs& in, const BackwardState<V, Single>& state,
                                          float (&g)[Slots<V>::kParts][kWidth]) const {
    Packed<T, V> dlam, dx;
#pragma unroll
    for (int part = 0; part < Slots<V>::kParts; part++) {
      float of_dx[kWidth];
      state.read_arriving(item.line, item.place, run(), part, g[part]);
#pragma unroll
      for (int i = 0; i < kWidth; i++) {
        const int v = part * kWidth + i;
        g[part][i] += in.grad_h.get(v);
        dlam.set(v, g[part][i] * in.x.get(v));
        of_dx[i] = g[part][i] * in.lam.get(v);
      }
      add_dx(item, part, of_dx);
#pragma unroll
      for (int i = 0; i < kWidth; i++) dx.set(part * kWidth + i, of_dx[i]);
    }
    store_packed<T, V>(offset(tensors.dlam, lam_at(item.pixel)), dlam);
    if (writes_dx())
      store_packed<T, V>(offset(tensors.dx, x_start + static_cast<int64_t>(item.pixel) * p.x_stride), dx);
  }

  // What goes to the line before; dlogits are left to `finish` and `store_dlogits`.
  __device__ __forceinline__ void process(const Items& item, const Inputs& in, bool restart,
                                          BackwardState<V, Single>& state,
                                          LogitGradients<T, V, Grouped>& dlogits) const {
    float g[Slots<V>::kParts][kWidth];
    receive(item, in, state, g);
    const Neighbours exist(position + item.place, walk.length);
    if (!restart) dlogits.begin(in, p.normalization, exist);
#pragma unroll
    for (int part = 0; part < Slots<V>::kParts; part++) {
      float c[3][kWidth];
#pragma unroll
      for (int i = 0; i < 3; i++) clear(c[i]);
      if (!restart) dlogits.add_part(in, part, p.normalization, exist, g[part], c);
      state.send(item.line, item.place, run(), part, c);
    }
  }

  __device__ __forceinline__ void step(const Items& item, const Inputs& in, bool restart,
                                       BackwardState<V, Single>& state) const {
    LogitGradients<T, V, Grouped> dlogits;
#pragma unroll
    for (int i = 0; i < 3; i++) clear(dlogits.d[i]);
    if (exists(item)) process(item, in, restart, state, dlogits);
    dlogits.finish(p.normalization, tensors.group_lanes, restart);
    if (exists(item)) store_dlogits(item, dlogits);
    if (item.place + 1 == run()) __syncthreads();
  }

  // While one item is worked on, the next one's inputs are in flight. Two buffers in turn save the copies, and cost
  // the registers that sm_80's code does not have.
  __device__ __forceinline__ void scan() const {
    Items item(walk, first_line, position, lines - 1, p.period);
    Inputs inputs[2];
    fetch(item, inputs[0]);
    BackwardState<V, Single> state(run());
    while (item.line >= 0) {
#pragma unroll
      for (int i = 0; i < (kHasRegisters ? 2 : 1); i++) {
        if (item.line < 0) break;
        const Items now = item;
        item.advance(walk, run(), p.period);
        if constexpr (kHasRegisters) {
          fetch(item, inputs[1 - i]);
          step(now, inputs[i], now.phase == 0, state);
        } else {
          const Inputs in = inputs[0];
          fetch(item, inputs[0]);
          step(now, in, now.phase == 0, state);
        }
      }
    }
  }
};

template <typename T, int V, bool Grouped, bool Single>
__global__ void __maxnreg__(register_limit(true, Grouped, sizeof(T) * V, V, Single))
    scan_backward_kernel(const __grid_constant__ ScanParameters p,
                         const __grid_constant__ BackwardPointers<T> tensors) {
  if (!p.tiled) {
    Backward<T, V, Grouped, Single>(p, tensors, blockIdx.x % p.directions, blockIdx.x / p.directions).scan();
    return;
  }
  for (int k = 0; k < p.directions; k++) Backward<T, V, Grouped, Single>(p, tensors, k, blockIdx.x).scan();
}

}  // namespace gspn
