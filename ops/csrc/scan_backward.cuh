// The adjoint scan, lines in reverse: g[t, n] = dh[t, n] + sum over d of w_d[t+1, n-d] g[t+1, n-d], and
// dlam = g x, dx = sum over directions of g lam, dw_d = g[t, n] h[t-1, n+d] carried on to the logits.
// Where the states are read out on the spot, dh = u grad_y and du = h grad_y.
// Sums that cross threads go through float32 scratch (or one block's shared memory) in a fixed order: no atomics.
#pragma once

#include "scan_backward_places.cuh"
#include "scan_gradients.cuh"
#include "scan_plan.h"
#include "scan_pointers.h"
#include "scan_ring.cuh"

namespace gspn {

// Single: the neighbours of h[t-1] are read where the threads beside this one have copied them for themselves.
template <typename T, int V, bool Grouped, bool Single, bool ReadsOut>
struct BackwardInputs {
  static constexpr int kGrad = 0, kX = 1, kLam = 2, kU = 3, kH = ReadsOut ? 4 : 3;
  static constexpr int kLogits = kH + backward_copies_of_h(Single);
  using Place = Ring<T, V, kLogits + Logits<T, V, Grouped>::kFields, Logits<T, V, Grouped>::kWords>;
  Packed<T, V> grad, x, lam, u, h[3];
  Logits<T, V, Grouped> logits;
};

template <typename T, int V, bool Grouped, bool Single, bool RowStochastic, bool ReadsOut>
struct Backward {
  using Inputs = BackwardInputs<T, V, Grouped, Single, ReadsOut>;
  using Place = typename Inputs::Place;
  using Items = Cursor<Single, -1>;
  using State = BackwardState<V, Single>;
  using Words = WordLanes<T, V, Single>;
  using Gradients = LogitGradients<T, V, Grouped, RowStochastic>;
  static constexpr int kWidth = Slots<V>::kWidth, kParts = Slots<V>::kParts;
  const ScanParameters& p;
  const BackwardPointers<T>& tensors;
  const int k;
  const Walk walk;
  int plane, lines, own_lines, first_pixel;
  const Run<Single> run;
  int part;  // which of its group's sums this thread writes; -1: none
  int64_t x_start, lam_start, logits_start;  // bytes of the first pixel

  __device__ __forceinline__ Backward(const ScanParameters& parameters, const BackwardPointers<T>& pointers,
                                      int direction, unsigned tile)
      : p(parameters),
        tensors(pointers),
        k(direction),
        walk(parameters.walks[direction].in_registers()),
        run(walk, threadIdx.y * (Single ? 1 : p.run), p.run, 1) {
    const Task<V> task(p, walk, tile);
    plane = Single ? threadIdx.z : 0;
    lines = Single && p.tiled ? p.task_lines : min(p.task_lines, walk.lines);
    own_lines = task.exists && run.first < walk.length ? min(lines, walk.lines - task.first_line) : 0;
    first_pixel = walk.start + (task.first_line + lines - 1) * walk.line_stride + run.first * walk.position_stride;
    const int group = p.heads.quotient(task.channel);
    const int lane = static_cast<int>(task.channel - group * p.heads.value) / V;
    part = lane >> tensors.group_shift << tensors.group_shift == lane ? lane >> tensors.group_shift : -1;
    const int64_t image = task.image * p.pixels, size = sizeof(T);
    x_start = image * p.x_stride + task.channel * size;
    lam_start = image * p.lam_stride + (k * p.channels + task.channel) * size;
    logits_start = image * p.logits_stride + (k * 3 * p.groups + group) * size;
  }

  // An item to come: there may be none.
  __device__ __forceinline__ bool exists(const Items& item) const {
    return item.lines > 0 && item.lines <= own_lines && (Single || item.n < walk.length);
  }

  __device__ __forceinline__ void stage(const Items& item, const BackwardSource<T, Single>& from,
                                        const Place& ring) const {
    const bool there = exists(item), wanted = !(there && item.restarts());
    const int n = item.n;
    ring.copy(Inputs::kGrad, from.grad.get(item.pixel, grad_stride()), there);
    ring.copy(Inputs::kX, from.x.get(item.pixel, p.x_stride), there);
    ring.copy(Inputs::kLam, from.lam.get(item.pixel, p.lam_stride), there);
    if constexpr (ReadsOut) ring.copy(Inputs::kU, from.u.get(item.pixel, p.lam_stride), there, gated());
    const T* h = from.h.get(item.pixel, p.lam_stride);
    if constexpr (ReadsOut) {
      // The h of the line before is that line's own at the next item, wherever a segment ends.
      const bool own_next = item.lines > 1 && item.lines - 1 <= own_lines;
      ring.copy(Inputs::kH, h, own_next, item.lines != 1);
    } else if constexpr (Single) {
      ring.copy(Inputs::kH, h, there, wanted);
    } else {
      const int64_t beside = int64_t{walk.position_stride} * p.lam_stride;
      ring.copy(Inputs::kH, offset(h, n > 0 ? -beside : 0), there, wanted);
      ring.copy(Inputs::kH + 1, h, there, wanted);
      ring.copy(Inputs::kH + 2, offset(h, n + 1 < walk.length ? beside : 0), there, wanted);
    }
    Logits<T, V, Grouped>::stage(ring, Inputs::kLogits, from.logits, item.pixel, p.logits_stride, n, walk.length, there,
                                 wanted);
    commit_copies();
  }

  __device__ __forceinline__ int grad_stride() const { return ReadsOut ? p.x_stride : p.lam_stride; }
  __device__ __forceinline__ bool gated() const { return tensors.u; }

  // dh from grad_y, and du from it and h.
  __device__ __forceinline__ void read_out(const Items& item, const Place& ring, const Packed<T, V>& own_h, bool there,
                                           const BackwardTarget<T, Single>& to, Inputs& in, float (&dh)[V]) const {
#pragma unroll
    for (int v = 0; v < V; v++) dh[v] = in.grad.get(v);
    if constexpr (ReadsOut) {
      if (!gated()) return;
      ring.read(Inputs::kU, in.u);
      float du[V];
#pragma unroll
      for (int v = 0; v < V; v++) {
        du[v] = dh[v] * own_h.get(v);
        dh[v] *= in.u.get(v);
      }
      if (there) store_rounded<T, V>(to.du.get(item.pixel, p.lam_stride), du);
    }
  }

  // g, and from it dlam and dx.
  __device__ __forceinline__ void receive(const Items& item, const Inputs& in, const float (&dh)[V],
                                          const BackwardTarget<T, Single>& to, bool there, const State& state,
                                          float (&g)[kParts][kWidth]) const {
    float dlam[V], dx[kParts][kWidth];
#pragma unroll
    for (int part = 0; part < kParts; part++) {
      state.read_arriving(item.n - run.first, p.run, part, g[part]);
#pragma unroll
      for (int i = 0; i < kWidth; i++) {
        const int v = part * kWidth + i;
        g[part][i] += dh[v];
        dlam[v] = g[part][i] * in.x.get(v);
        dx[part][i] = g[part][i] * in.lam.get(v);
      }
    }
    const auto store = [&] {
      if (!there) return;
      store_rounded<T, V>(to.dlam.get(item.pixel, p.lam_stride), dlam);
      store_dx(item, to.dx, dx);
    };
    if constexpr (Single)
      to.dx.tile.take_turn(store);
    else
      store();
  }

  __device__ __forceinline__ void store_dx(const Items& item, const DxTarget<T, Single>& to,
                                           float (&dx)[kParts][kWidth]) const {
    char* at = to.at.get(item.pixel, to.stride);
    float all[V];
#pragma unroll
    for (int part = 0; part < kParts; part++) {
      if constexpr (Single) to.tile.sum(item.lines, part, dx[part]);
#pragma unroll
      for (int i = 0; i < kWidth; i++) all[part * kWidth + i] = dx[part][i];
    }
    if (Single && to.tile.keeps(item.lines)) return;
    if (!to.to_part) return store_rounded<T, V>(reinterpret_cast<T*>(at), all);
#pragma unroll
    for (int part = 0; part < kParts; part++) store_floats(reinterpret_cast<float*>(at) + part * kWidth, dx[part]);
  }

  // A logit of a neighbour that does not exist has no gradient, not even a rounding error.
  __device__ __forceinline__ void store_dlogits(const Items& item, const BackwardTarget<T, Single>& to,
                                                Gradients& gradients) const {
    const int n = item.n;
    if (n == 0) clear(gradients.d[0]);
    if (n + 1 == walk.length) clear(gradients.d[2]);
    if (Grouped && part < 0) return;
#pragma unroll
    for (int i = 0; i < 3; i++) {
      char* at = to.dlogits[i].get(item.pixel, to.logits_stride);
      if (Grouped && tensors.dlogits_parts)
        store_floats(reinterpret_cast<float*>(at), gradients.d[i]);
      else
        store_rounded<T, Gradients::kCount>(reinterpret_cast<T*>(at), gradients.d[i]);
    }
  }

  // What goes to the line before, and the gradients of the logits.
  __device__ __forceinline__ void send(const Items& item, const Inputs& in, const float (&g)[kParts][kWidth],
                                       bool there, State& state, Gradients& dlogits) const {
    const Neighbours exist(item.n, walk.length);
    with_ordinary<RowStochastic>(in.logits.ordinary(), [&](auto ordinary) {
      constexpr bool kOrdinary = decltype(ordinary)::value;
      dlogits.template begin<kOrdinary>(in.logits, exist, p.sigmoid);
#pragma unroll
      for (int part = 0; part < kParts; part++) {
        float c[3][kWidth];
        dlogits.template add_part<kOrdinary>(in, part, exist, p.sigmoid, g[part], c);
        if (there) state.send(item.n - run.first, p.run, part, c);
      }
    });
    dlogits.finish(1 << tensors.group_shift, exist, p.sigmoid);
  }

  // The line before is another segment's last: nothing goes to it.
  __device__ __forceinline__ void send_nothing(const Items& item, bool there, State& state, Gradients& dlogits) const {
#pragma unroll
    for (int i = 0; i < 3; i++) clear(dlogits.d[i]);
    float c[3][kWidth];
#pragma unroll
    for (int i = 0; i < 3; i++) clear(c[i]);
    if (!there) return;
#pragma unroll
    for (int part = 0; part < kParts; part++) state.send(item.n - run.first, p.run, part, c);
  }

  // h[t-1] at n - 1, n, n + 1; that at n stands for a neighbour that does not exist.
  __device__ __forceinline__ void read_h(const Place& ring, const Shared (&beside)[2], Inputs& in) const {
    if constexpr (Single) {
      ring.read_of(beside[0], Inputs::kH, in.h[0]);
      ring.read(Inputs::kH, in.h[1]);
      ring.read_of(beside[1], Inputs::kH, in.h[2]);
    } else {
#pragma unroll
      for (int d = 0; d < 3; d++) ring.read(Inputs::kH + d, in.h[d]);
    }
  }

  __device__ __forceinline__ void step(const Items& item, const Place& ring, const Shared (&beside)[2],
                                       const Words& words, const BackwardTarget<T, Single>& to, State& state,
                                       Packed<T, V>& own_h) const {
    Inputs in;
    Gradients dlogits;
    float dh[V], g[kParts][kWidth];
    ring.read(Inputs::kGrad, in.grad);
    ring.read(Inputs::kX, in.x);
    ring.read(Inputs::kLam, in.lam);
    const bool there = item.lines <= own_lines && (Single || item.n < walk.length);
    read_out(item, ring, own_h, there, to, in, dh);
    receive(item, in, dh, to, there, state, g);
    if constexpr (ReadsOut) {
      if (item.lines > 1) ring.read(Inputs::kH, own_h);
    }
    if (item.restarts()) {
      send_nothing(item, there, state, dlogits);
    } else {
      read_h(ring, beside, in);
      in.logits.read(ring, Inputs::kLogits, words);
      send(item, in, g, there, state, dlogits);
    }
    if (there) store_dlogits(item, to, dlogits);
    if (Single || item.n == run.last) state.end_line();
  }

  template <typename U>
  __device__ __forceinline__ Pointer<U, Single> follow(U* tensor, int64_t first, int stride) const {
    return Pointer<U, Single>(offset(tensor, first), walk, -1, first_pixel, stride);
  }

  __device__ __forceinline__ BackwardSource<T, Single> source() const {
    const auto logits = [&](int d) { return follow(tensors.logits + d * p.groups, logits_start, p.logits_stride); };
    const int64_t line = int64_t{walk.line_stride} * p.lam_stride;
    return {follow(tensors.grad, ReadsOut ? x_start : lam_start, grad_stride()),
            follow(tensors.x, x_start, p.x_stride),
            follow(tensors.lam, lam_start, p.lam_stride),
            follow(tensors.u, lam_start, p.lam_stride),
            follow(tensors.h, lam_start - line, p.lam_stride),
            {logits(0), logits(1), logits(2)}};
  }

  __device__ __forceinline__ BackwardTarget<T, Single> target() const {
    const bool to_parts = tensors.dlogits_parts;
    const int scale = to_parts ? tensors.parts * (sizeof(float) / sizeof(T)) : 1, stride = p.logits_stride * scale;
    char* first = reinterpret_cast<char*>(tensors.dlogits);
    if (to_parts) first = reinterpret_cast<char*>(tensors.dlogits_parts + part);
    const auto logits = [&](int d) {
      return follow(first, (logits_start + d * p.groups * int64_t{sizeof(T)}) * scale, stride);
    };
    return {dx_target(), follow(tensors.dlam, lam_start, p.lam_stride),
            follow(tensors.du, lam_start, p.lam_stride), {logits(0), logits(1), logits(2)}, stride};
  }

  __device__ __forceinline__ DxTarget<T, Single> dx_target() const {
    const bool to_part = tensors.dx_parts[0];
    const int scale = to_part ? sizeof(float) / sizeof(T) : 1, stride = p.x_stride * scale;
    char* first = to_part ? reinterpret_cast<char*>(tensors.dx_parts[k]) : reinterpret_cast<char*>(tensors.dx);
    DxTarget<T, Single> to{follow(first, x_start * scale, stride), {}, stride, to_part};
    if constexpr (Single) to.tile = Tile::of<V, -1>(p, walk, first_pixel, run.first, p.tiled && p.directions.value > 1);
    return to;
  }

  // h of the last line, which no item before it has copied.
  __device__ __forceinline__ void load_last_h(Packed<T, V>& own_h) const {
    if constexpr (ReadsOut) {
      if (gated() && own_lines == lines)
        load_once<T, V>(own_h, at_pixel(offset(tensors.h, lam_start), first_pixel, p.lam_stride));
    }
  }

  // A barrier a line: behind it lie the copies of the line and what the line after has sent, and before it the last
  // look at the place that is filled next.
  __device__ __forceinline__ void scan() const {
    const int last_restart = (lines - 1) / p.period * p.period + 1;
    Items item(lines, last_restart, run.first, first_pixel), ahead = item;
    BackwardSource<T, Single> from = source();
    BackwardTarget<T, Single> to = target();
    Place ring(p.ring_offset, plane);
    const int n = run.first;
    const Shared beside[2] = {ring.fields_of(n > 0 ? -static_cast<int>(blockDim.x) : 0, plane),
                              ring.fields_of(n + 1 < walk.length ? blockDim.x : 0, plane)};
    Words words(ring.words, offset(tensors.logits, logits_start), p.groups, p.logits_stride, first_pixel,
                -walk.line_stride);
    const auto stage_next = [&] {
      stage(ahead, from, ring);
      ahead.advance(walk, run, p.period);
      from.advance();
    };
#pragma unroll
    for (int i = 0; i < kStages - 1; i++) {
      stage_next();
      ring.advance();
    }
    State state(p.run, plane);
    Packed<T, V> own_h;
    load_last_h(own_h);
    while (item.lines > 0) {
      wait_for_copies<kStages - 2>();
      if (Single || item.n == run.first) __syncthreads();
      stage_next();
      ring.advance();
      step(item, ring, beside, words, to, state, own_h);
      item.advance(walk, run, p.period);
      words.move_to(item.pixel);
      to.advance();
    }
  }
};

template <typename T, int V, bool Grouped, bool Single, bool RowStochastic, bool ReadsOut>
__device__ __forceinline__ void backward_of(const ScanParameters& p, const BackwardPointers<T>& tensors) {
  const bool tiled = Single && p.tiled;
  const unsigned block = blockIdx.x, before = p.directions.quotient(block);
  const unsigned k = tiled ? threadIdx.z : block - before * p.directions.value;
  Backward<T, V, Grouped, Single, RowStochastic, ReadsOut>(p, tensors, k, tiled ? block : before).scan();
}

template <typename T, int V, bool Grouped, bool Single, bool RowStochastic>
__global__ void __maxnreg__(register_limit(true, Grouped, sizeof(T) * V, V, false))
    scan_backward_kernel(const __grid_constant__ ScanParameters p,
                         const __grid_constant__ BackwardPointers<T> tensors) {
  backward_of<T, V, Grouped, Single, RowStochastic, false>(p, tensors);
}

// Single and RowStochastic are true, as in mix_forward_kernel.
template <typename T, int V, bool Grouped, bool Single, bool RowStochastic>
__global__ void __maxnreg__(register_limit(true, Grouped, sizeof(T) * V, V, true))
    mix_backward_kernel(const __grid_constant__ ScanParameters p, const __grid_constant__ BackwardPointers<T> tensors) {
  backward_of<T, V, Grouped, Single, RowStochastic, true>(p, tensors);
}

}  // namespace gspn
