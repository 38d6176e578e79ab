// h[t, n] = lam[t, n] x[t, n] + sum over d of w_d[t, n] h[t-1, n+d], all directions in one launch; and the same read out
// on the spot, y = sum over k of u_k h_k.
#pragma once

#include <type_traits>

#include "scan_plan.h"
#include "scan_pointers.h"
#include "scan_ring.cuh"
#include "scan_tile.cuh"
#include "scan_weights.cuh"

namespace gspn {

template <typename T, int V, bool Grouped, bool ReadsOut>
struct ForwardInputs {
  static constexpr int kX = 0, kLam = 1, kU = 2, kLogits = ReadsOut ? 3 : 2;  // fields of a ring's place
  using Place = Ring<T, V, kLogits + Logits<T, V, Grouped>::kFields, Logits<T, V, Grouped>::kWords>;
  Packed<T, V> x, lam, u;
  Logits<T, V, Grouped> logits;
};

// The state of a line, in shared memory, a slot for each parity of the line; a thread with one position (Single) has its
// own in registers too. Of a run the positions lie as far apart as there are threads, so that those of neighbouring
// threads are neighbours.
template <int V, bool Single>
struct ForwardState {
  using Part = typename Slots<V>::Part;
  static constexpr int kParts = Slots<V>::kParts, kWidth = Slots<V>::kWidth;
  Slots<V> slots;
  int parity, parities;  // bytes before the slot of the previous line; of a line's and the next one's
  int place;             // bytes from the first position of the run to the one at hand
  Part here[kParts];     // of the previous line, at n
  Part after[kParts];    // at n + 1

  __device__ __forceinline__ ForwardState(int run, int plane)
      : slots(2, blockDim.y * run, plane), parity(0), parities(kParts * slots.part_stride), place(0) {
    slots.clear_all(2, run);
  }

  __device__ __forceinline__ int offset(int part, int line) const {
    return part * slots.part_stride + (Single ? line : line + place);
  }

  // The previous line at n - 1 and n + 1, and of a run at n.
  __device__ __forceinline__ void read(int part, Part& before) {
    read_shared<kWidth>(slots.mine - slots.row_stride + offset(part, parity), before);
    if constexpr (!Single) read_shared<kWidth>(slots.mine + offset(part, parity), here[part]);
    read_shared<kWidth>(slots.mine + slots.row_stride + offset(part, parity), after[part]);
  }

  __device__ __forceinline__ void update(const Part (&state)[kParts]) {
#pragma unroll
    for (int part = 0; part < kParts; part++)
      write_shared<kWidth>(slots.mine + offset(part, parities - parity), state[part]);
  }

  __device__ __forceinline__ void next() { place += blockDim.y * slots.row_stride; }

  __device__ __forceinline__ void end_line() {
    __syncthreads();
    parity = parities - parity;
    place = 0;
  }
};

// Where an item's inputs lie.
template <typename T, bool Single>
struct ForwardSource {
  Pointer<const T, Single> x, lam, u, logits[3];

  __device__ __forceinline__ void advance() {
    x.advance(), lam.advance(), u.advance();
#pragma unroll
    for (int d = 0; d < 3; d++) logits[d].advance();
  }
};

// Where its states go, and of a read-out the sum over the directions.
template <typename T, bool Single>
struct ForwardTarget {
  Pointer<T, Single> h, y;
  Tile sum;

  __device__ __forceinline__ void advance() {
    h.advance(), y.advance(), sum.advance();
  }
};

template <typename T, int V, bool Grouped, bool Single, bool RowStochastic, bool ReadsOut>
struct Forward {
  using Inputs = ForwardInputs<T, V, Grouped, ReadsOut>;
  using Items = Cursor<Single, 1>;
  using State = ForwardState<V, Single>;
  using Words = WordLanes<T, V, Single>;
  using Values = typename Slots<V>::Part[Slots<V>::kParts];
  static constexpr int kWidth = Slots<V>::kWidth, kParts = Slots<V>::kParts;
  const ScanParameters& p;
  const Walk walk;
  int plane, lines, own_lines, first_line;
  const Run<Single> run;
  const T *x, *lam, *logits, *u;  // of the first pixel
  T *h, *y;
  bool gated, keeps_states;  // ReadsOut

  __device__ __forceinline__ Forward(const ScanParameters& parameters, const ForwardPointers<T>& tensors, int k,
                                     unsigned tile)
      : p(parameters), walk(parameters.walks[k].in_registers()), run(walk, threadIdx.y, p.run, blockDim.y) {
    const Task<V> task(p, walk, tile);
    plane = ReadsOut ? k : 0;
    first_line = task.first_line;
    lines = ReadsOut ? p.task_lines : min(p.task_lines, walk.lines);
    own_lines = task.exists && run.first < walk.length ? min(lines, walk.lines - first_line) : 0;
    const int64_t image = task.image * p.pixels;
    const int group = p.heads.quotient(task.channel);
    const int64_t lam_start = image * p.lam_stride + (k * p.channels + task.channel) * int64_t{sizeof(T)};
    x = offset(tensors.x, image * p.x_stride) + task.channel;
    lam = offset(tensors.lam, lam_start);
    h = offset(tensors.h, lam_start);
    if constexpr (ReadsOut) {
      u = offset(tensors.u, lam_start);
      y = offset(tensors.y, image * p.x_stride) + task.channel;
      gated = tensors.u, keeps_states = tensors.h;
    }
    logits = offset(tensors.logits, image * p.logits_stride) + k * 3 * p.groups + group;
  }

  __device__ __forceinline__ bool exists(const Items& item) const {
    return item.lines > lines - own_lines && (Single || item.n < walk.length);
  }

  __device__ __forceinline__ void stage(const Items& item, const ForwardSource<T, Single>& from,
                                        typename Inputs::Place& ring) const {
    const bool there = exists(item);
    ring.copy(Inputs::kX, from.x.get(item.pixel, p.x_stride), there);
    ring.copy(Inputs::kLam, from.lam.get(item.pixel, p.lam_stride), there);
    if constexpr (ReadsOut) ring.copy(Inputs::kU, from.u.get(item.pixel, p.lam_stride), there, gated);
    Logits<T, V, Grouped>::stage(ring, Inputs::kLogits, from.logits, item.pixel, p.logits_stride,
                                 item.n, walk.length, there, !item.restarts());
    commit_copies();
    ring.advance();
  }

  // The sum over d of w_d h_d for one part of the channels; `shared` are the weights of a group.
  template <bool Ordinary>
  __device__ __forceinline__ void combine(const Inputs& in, int part, const Neighbours& exist, const Mix& shared,
                                          const float (&before)[kWidth], const float (&here)[kWidth],
                                          const float (&after)[kWidth], float (&carried)[kWidth]) const {
#pragma unroll
    for (int i = 0; i < kWidth; i++) {
      Mix own = shared;
      if constexpr (!Grouped) {
        float l[3];
        in.logits.get(part * kWidth + i, l);
        mix<RowStochastic, false, Ordinary>(l, exist, p.sigmoid, own);
      }
      carried[i] = own.p[0] * before[i] + own.p[1] * here[i] + own.p[2] * after[i];
      if constexpr (!Grouped) carried[i] *= own.scale;
    }
  }

  template <bool Ordinary>
  __device__ __forceinline__ Mix group_weights(const Inputs& in, const Neighbours& exist) const {
    Mix shared{};
    if constexpr (Grouped) {
      float l[3];
      in.logits.get(0, l);
      mix<RowStochastic, false, Ordinary>(l, exist, p.sigmoid, shared);
#pragma unroll
      for (int d = 0; d < 3; d++) shared.p[d] *= shared.scale;
    }
    return shared;
  }

  // What the previous line brings, part by part of the channels, so that few of a neighbour's values are in registers.
  __device__ __forceinline__ void propagate(const Items& item, const Inputs& in, State& past, Values& carried) const {
    const Neighbours exist(item.n, walk.length);
    with_ordinary<RowStochastic>(in.logits.ordinary(), [&](auto ordinary) {
      constexpr bool kOrdinary = decltype(ordinary)::value;
      const Mix shared = group_weights<kOrdinary>(in, exist);
#pragma unroll
      for (int part = 0; part < kParts; part++) {
        float before[kWidth];
        past.read(part, before);
        combine<kOrdinary>(in, part, exist, shared, before, past.here[part], past.after[part], carried[part]);
      }
    });
  }

  // The states times their gates, added to those of the directions before; the last direction has y.
  __device__ __forceinline__ void read_out(const Items& item, const typename Inputs::Place& ring, Inputs& in,
                                           const ForwardTarget<T, Single>& to, Values& states) const {
    float all[V];
    if (gated) ring.read(Inputs::kU, in.u);
#pragma unroll
    for (int part = 0; part < kParts; part++) {
#pragma unroll
      for (int i = 0; i < kWidth; i++)
        if (gated) states[part][i] *= in.u.get(part * kWidth + i);
      to.sum.sum(item.lines, part, states[part]);
#pragma unroll
      for (int i = 0; i < kWidth; i++) all[part * kWidth + i] = states[part][i];
    }
    if (to.sum.keeps(item.lines)) return;
    Packed<T, V> rounded;
    rounded.set_all(all);
    store_packed<T, V>(to.y.get(item.pixel, p.x_stride), rounded);
  }

  __device__ __forceinline__ void step(const Items& item, const typename Inputs::Place& ring, const Words& words,
                                       const ForwardTarget<T, Single>& to, State& past) const {
    Inputs in;
    Values carried;
    wait_for_copies<kStages - 1>();
    if (item.restarts()) {
#pragma unroll
      for (int part = 0; part < kParts; part++) clear(carried[part]);
    } else {
      in.logits.read(ring, Inputs::kLogits, words);
      propagate(item, in, past, carried);
    }
    ring.read(Inputs::kX, in.x);
    ring.read(Inputs::kLam, in.lam);
    float state[V];
#pragma unroll
    for (int v = 0; v < V; v++) {
      state[v] = fmaf(in.lam.get(v), in.x.get(v), carried[v / kWidth][v % kWidth]);
      carried[v / kWidth][v % kWidth] = state[v];
      if constexpr (Single) past.here[v / kWidth][v % kWidth] = state[v];
    }
    if (exists(item)) {
      past.update(carried);
      if (!ReadsOut || keeps_states) {
        Packed<T, V> rounded;
        rounded.set_all(state);
        store_packed<T, V>(to.h.get(item.pixel, p.lam_stride), rounded);
      }
    }
    if constexpr (ReadsOut) {
      to.sum.take_turn([&] {
        if (exists(item)) read_out(item, ring, in, to, carried);
      });
    }
    if (Single || item.n == run.last)
      past.end_line();
    else
      past.next();
  }

  // The recurrence waits for memory, never memory for the recurrence.
  __device__ __forceinline__ void scan() const {
    const int period = in_register(p.period);
    Items item(lines, lines, run.first,
               walk.start + first_line * walk.line_stride + run.first * walk.position_stride);
    Items ahead = item;
    const auto follow = [&](auto* first, int stride) {
      return Pointer<std::remove_pointer_t<decltype(first)>, Single>(first, walk, 1, item.pixel, stride);
    };
    ForwardSource<T, Single> source{follow(x, p.x_stride), follow(lam, p.lam_stride), follow(u, p.lam_stride), {
        follow(logits, p.logits_stride), follow(logits + p.groups, p.logits_stride),
        follow(logits + 2 * p.groups, p.logits_stride)}};
    ForwardTarget<T, Single> to{follow(h, p.lam_stride), follow(y, p.x_stride), {}};
    if constexpr (ReadsOut)
      to.sum = Tile::of<V, 1>(p, walk, item.pixel, run.first, p.directions.value > 1);
    typename Inputs::Place ring(p.ring_offset, plane);
    Words words(ring.words, logits, p.groups, p.logits_stride, item.pixel, walk.line_stride);
    const auto stage_next = [&] {
      stage(ahead, source, ring);
      ahead.advance(walk, run, period);
      source.advance();
    };
#pragma unroll
    for (int i = 0; i < kStages; i++) stage_next();
    State past(Single ? 1 : p.run, plane);
    while (item.lines > 0) {
      step(item, ring, words, to, past);
      stage_next();
      item.advance(walk, run, period);
      to.advance();
      words.move_to(item.pixel);
    }
  }
};

template <typename T, int V, bool Grouped, bool Single, bool RowStochastic>
__global__ void __maxnreg__(register_limit(false, Grouped, sizeof(T) * V, V, false))
    scan_forward_kernel(const __grid_constant__ ScanParameters p, const __grid_constant__ ForwardPointers<T> tensors) {
  const unsigned block = blockIdx.x, tile = p.directions.quotient(block), k = block - tile * p.directions.value;
  Forward<T, V, Grouped, Single, RowStochastic, false>(p, tensors, k, tile).scan();
}

// Single and RowStochastic are true: parameters as above, so that the tests of the machine code know its name.
template <typename T, int V, bool Grouped, bool Single, bool RowStochastic>
__global__ void __maxnreg__(register_limit(false, Grouped, sizeof(T) * V, V, true))
    mix_forward_kernel(const __grid_constant__ ScanParameters p, const __grid_constant__ ForwardPointers<T> tensors) {
  Forward<T, V, Grouped, Single, RowStochastic, true>(p, tensors, threadIdx.z, blockIdx.x).scan();
}

}  // namespace gspn
