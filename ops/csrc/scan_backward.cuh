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
  float* dx_parts;       // (K, B, H, W, C), or null: one direction, or tiled
  float* dlogits_parts;  // (B, H, W, K, 3, G, parts), or null: each group lies within the lanes summed by shuffles
  int group_lanes;       // neighbouring lanes, a power of two, that are summed by shuffles
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
  static constexpr int kWidth = Slots<V>::kWidth;
  Slots<V> slots;
  Part pending[Slots<V>::kParts];  // Single: c_0 of the line after; otherwise c_+1 of the place before

  __device__ __forceinline__ int edge(int line, bool last) const { return 2 * (line & 1) + static_cast<int>(last); }

  __device__ __forceinline__ void read_arriving(int line, int place, int run, int part, bool none, Part& sum) const {
    clear(sum);
    if (none) return;
    if constexpr (Single) {
#pragma unroll
      for (int i = 0; i < kWidth; i++) sum[i] = pending[part][i];
    } else {
      slots.read(4 + place, part, 0, sum);
    }
    if ((Single || place == 0) && threadIdx.y > 0) add_edge(edge(line + 1, true), part, -1, sum);
    if ((Single || place + 1 == run) && threadIdx.y + 1 < blockDim.y) add_edge(edge(line + 1, false), part, 1, sum);
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
  Weights weights;  // Grouped: those of the group

  __device__ __forceinline__ void begin(const BackwardInputs<T, V, Grouped>& in, int n, int length, int normalization,
                                        bool restart) {
#pragma unroll
    for (int i = 0; i < 3; i++) clear(d[i]);
    if (Grouped && !restart) load_weights(in, 0, n, length, normalization);
  }

  __device__ __forceinline__ void load_weights(const BackwardInputs<T, V, Grouped>& in, int v, int n, int length,
                                               int normalization) {
    float l[3];
    in.logits.get(v, n, length, missing_logit(normalization), l);
    normalize<true>(normalization, l, weights);
  }

  __device__ __forceinline__ void add_part(const BackwardInputs<T, V, Grouped>& in, int part, int n, int length,
                                           int normalization, bool restart, const float (&g)[kWidth],
                                           float (&c)[3][kWidth]) {
#pragma unroll
    for (int i = 0; i < 3; i++) clear(c[i]);
    if (restart) return;
#pragma unroll
    for (int j = 0; j < kWidth; j++) {
      const int v = part * kWidth + j;
      if constexpr (!Grouped) load_weights(in, v, n, length, normalization);
      float dw[3];
#pragma unroll
      for (int i = 0; i < 3; i++) {
        c[i][j] = weights.w[i] * g[j];
        dw[i] = g[j] * to_float(in.h[i].elements[v]);
        if constexpr (Grouped) d[i][0] += dw[i];
      }
      if constexpr (!Grouped) {
        chain_rule(normalization, weights, dw);
#pragma unroll
        for (int i = 0; i < 3; i++) d[i][v] = dw[i];
      }
    }
  }

  // Sums a group over its lanes; every thread of a warp must come here.
  __device__ __forceinline__ void finish(int normalization, int group_lanes, bool restart) {
    if (!Grouped || restart) return;
    float dw[3];
#pragma unroll
    for (int i = 0; i < 3; i++) {
      dw[i] = d[i][0];
      for (int lane = group_lanes / 2; lane > 0; lane /= 2) dw[i] += shuffle_xor(dw[i], lane);
    }
    chain_rule(normalization, weights, dw);
#pragma unroll
    for (int i = 0; i < 3; i++) d[i][0] = dw[i];
  }
};

template <typename T, int V>
__device__ __forceinline__ void store_rounded(T* to, const float (&values)[V]) {
  Packed<T, V> rounded;
#pragma unroll
  for (int v = 0; v < V; v++) round_to(rounded.elements[v], values[v]);
  store_packed<T, V>(to, rounded);
}

template <int N>
__device__ __forceinline__ void store_floats(float* to, const float (&values)[N]) {
  Packed<float, N> packed;
#pragma unroll
  for (int i = 0; i < N; i++) packed.elements[i] = values[i];
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
  const Task<V> task;
  const int lines, own_lines;
  using Inputs = BackwardInputs<T, V, Grouped>;
  using Items = Cursor<Single, -1>;

  __device__ __forceinline__ Backward(const ScanParameters& parameters, const BackwardPointers<T>& pointers,
                                      int direction, int64_t tile)
      : p(parameters),
        tensors(pointers),
        k(direction),
        walk(parameters.walks[direction]),
        task(parameters, walk.lines, tile),
        lines(parameters.tiled ? walk.lines : min(parameters.period, walk.lines)),
        own_lines(task.exists ? min(lines, walk.lines - task.first_line) : 0) {}

  __device__ __forceinline__ int run() const { return Single ? 1 : p.run; }

  __device__ __forceinline__ bool exists(const Items& item) const {
    return item.line >= 0 && item.line < own_lines && task.position + item.place < walk.length;
  }

  __device__ __forceinline__ int64_t pixel(const Items& item) const { return task.image * p.pixels + item.pixel; }

  __device__ __forceinline__ int64_t lam_offset(int64_t pixel) const {
    return (pixel * p.directions + k) * p.channels + task.channel;
  }

  __device__ __forceinline__ int64_t logits_offset(int64_t pixel) const {
    return (pixel * p.directions + k) * 3 * p.groups + task.channel / (p.channels / p.groups);
  }

  __device__ __forceinline__ void fetch(const Items& item, Inputs& in) const {
    in = Inputs();
    if (!exists(item)) return;
    const int64_t at = pixel(item), lam_at = lam_offset(at);
    load_once<T, V>(in.grad_h, tensors.grad_h + lam_at);
    load_shared_input<T, V>(in.x, tensors.x + at * p.channels + task.channel);
    load_once<T, V>(in.lam, tensors.lam + lam_at);
    if (item.phase == 0) return;
    in.logits.load(tensors.logits + logits_offset(at), p.groups);
    const int n = task.position + item.place;
    const int64_t h_at = lam_at - static_cast<int64_t>(walk.line_stride) * p.directions * p.channels;
    const int64_t neighbour = static_cast<int64_t>(walk.position_stride) * p.directions * p.channels;
    if (n > 0) load_shared_input<T, V>(in.h[0], tensors.h + h_at - neighbour);
    load_shared_input<T, V>(in.h[1], tensors.h + h_at);
    if (n + 1 < walk.length) load_shared_input<T, V>(in.h[2], tensors.h + h_at + neighbour);
  }

  // Leaves in `values` what belongs to the final dx, if this direction is to write it.
  __device__ __forceinline__ void add_dx(const Items& item, int part, float (&values)[Slots<V>::kWidth]) const {
    if (tensors.dx_parts) {
      const int64_t at = pixel(item) * p.channels + task.channel + part * Slots<V>::kWidth;
      store_floats(tensors.dx_parts + k * p.elements + at, values);
    } else {
      sum_in_tile<V>(shared_memory() + p.tile_offset, item.pixel, part, k, p.directions, values);
    }
  }

  __device__ __forceinline__ bool writes_dx() const {
    return !tensors.dx_parts && (!p.tiled || k + 1 == p.directions);
  }

  __device__ __forceinline__ void store_dlogits(const Items& item, const LogitGradients<T, V, Grouped>& d) const {
    const int64_t at = logits_offset(pixel(item));
    const int heads = p.channels / p.groups;
    const int lane = task.channel % heads / V;  // within the group
    if (Grouped && lane % tensors.group_lanes != 0) return;
    const int parts = Grouped ? heads / V / tensors.group_lanes : 1;
#pragma unroll
    for (int i = 0; i < 3; i++) {
      const int64_t element = at + static_cast<int64_t>(i) * p.groups;
      if constexpr (Grouped) {
        if (tensors.dlogits_parts) {
          store_floats<1>(tensors.dlogits_parts + element * parts + lane / tensors.group_lanes, d.d[i]);
          continue;
        }
      }
      store_rounded<T, LogitGradients<T, V, Grouped>::kCount>(tensors.dlogits + element, d.d[i]);
    }
  }

  __device__ __forceinline__ void process(const Items& item, const Inputs& in,
                                          BackwardState<V, Single>& state) const {
    constexpr int width = Slots<V>::kWidth;
    const int n = task.position + item.place;
    const bool stores = exists(item), restart = item.phase == 0;
    Packed<T, V> dlam, dx;
    LogitGradients<T, V, Grouped> dlogits;
    dlogits.begin(in, n, walk.length, p.normalization, restart);
#pragma unroll
    for (int part = 0; part < Slots<V>::kParts; part++) {
      float g[width], of_dx[width], c[3][width];
      state.read_arriving(item.line, item.place, run(), part, item.line + 1 == lines, g);
#pragma unroll
      for (int i = 0; i < width; i++) {
        const int v = part * width + i;
        g[i] += to_float(in.grad_h.elements[v]);
        round_to(dlam.elements[v], g[i] * to_float(in.x.elements[v]));
        of_dx[i] = g[i] * to_float(in.lam.elements[v]);
      }
      if (stores) add_dx(item, part, of_dx);
#pragma unroll
      for (int i = 0; i < width; i++) round_to(dx.elements[part * width + i], of_dx[i]);
      dlogits.add_part(in, part, n, walk.length, p.normalization, restart, g, c);
      state.send(item.line, item.place, run(), part, c);
    }
    dlogits.finish(p.normalization, tensors.group_lanes, restart);
    if (!stores) return;
    const int64_t at = pixel(item);
    store_packed<T, V>(tensors.dlam + lam_offset(at), dlam);
    if (writes_dx()) store_packed<T, V>(tensors.dx + at * p.channels + task.channel, dx);
    store_dlogits(item, dlogits);
  }

  __device__ __forceinline__ void scan() const {
    Items ahead(p, walk, task.first_line, task.position, lines - 1), item = ahead;
    Inputs next;
    fetch(ahead, next);
    BackwardState<V, Single> state;
    while (item.line >= 0) {
      const Inputs in = next;
      ahead.advance(p, walk);
      fetch(ahead, next);
      process(item, in, state);
      if (item.place + 1 == run()) __syncthreads();
      item.advance(p, walk);
    }
  }
};

template <typename T, int V, bool Grouped, bool Single>
__global__ void __maxnreg__(register_limit(true, sizeof(T) * V, V, Single))
    scan_backward_kernel(const __grid_constant__ ScanParameters p,
                         const __grid_constant__ BackwardPointers<T> tensors) {
  if (!p.tiled) {
    Backward<T, V, Grouped, Single>(p, tensors, blockIdx.x % p.directions, blockIdx.x / p.directions).scan();
    return;
  }
  for (int k = 0; k < p.directions; k++) Backward<T, V, Grouped, Single>(p, tensors, k, blockIdx.x).scan();
}

}  // namespace gspn
