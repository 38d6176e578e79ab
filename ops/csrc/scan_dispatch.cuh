// From a plan to the kernel that carries it out. `launch(kernel, blocks, threads, shared_bytes, arguments...)`
// starts it: on a GPU in scan_launch.cuh, on the host in tests/ops/emulation.
#pragma once

#include "scan_backward.cuh"
#include "scan_forward.cuh"
#include "scan_plan.h"
#include "scan_reduce.cuh"

namespace gspn {

inline ScanParameters parameters_of(const ScanShape& s, const ScanPlan& plan, int element_bytes) {
  ScanParameters p{};
  p.batch = s.batch;
  p.pixels = static_cast<int>(s.pixels());
  p.channels = static_cast<int>(s.channels);
  p.groups = static_cast<int>(s.groups);
  p.directions = Divisor::of(s.directions);
  p.vectors = Divisor::of(s.channels / plan.vector);
  p.heads = Divisor::of(s.heads());
  const int64_t lines = Extent(s).lines;
  p.period = static_cast<int>(s.segment > 0 ? std::min(s.segment, lines) : lines);
  p.x_stride = static_cast<int>(s.channels * element_bytes);
  p.lam_stride = static_cast<int>(s.directions * s.channels * element_bytes);
  p.logits_stride = static_cast<int>(s.directions * 3 * s.groups * element_bytes);
  p.task_lines = static_cast<int>(task_lines(s, plan));
  p.sigmoid = s.normalization == kSigmoid;
  p.run = plan.run;
  p.tiled = plan.tiled;
  p.tile_offset = plan.tile_offset;
  p.ring_offset = plan.ring_offset;
  for (int64_t k = 0; k < s.directions; k++) {
    const LineWalk walk(s, s.codes[k]);
    p.walks[k] = {static_cast<int>(walk.count), static_cast<int>(walk.length), static_cast<int>(walk.start),
                  static_cast<int>(walk.line_stride), static_cast<int>(walk.position_stride),
                  Divisor::of((walk.count + p.task_lines - 1) / p.task_lines)};
  }
  return p;
}

template <auto Value>
struct Constant {
  static constexpr auto value = Value;
};

// Calls `body` with whether the scan is row-stochastic, which has kernels of its own; sigmoid and none share theirs.
template <typename Body>
void with_normalization(int normalization, Body&& body) {
  if (normalization == kRowStochastic) return body(Constant<true>());
  body(Constant<false>());
}

// Calls `body` with the plan's vector as a compile-time constant, if an access of that width exists for T.
template <typename T, int Widest, typename Body>
void with_vector(int vector, Body&& body) {
  if constexpr (Widest >= 8 && sizeof(T) * 8 <= 16)
    if (vector == 8) return body(Constant<8>());
  if (vector == 4) return body(Constant<4>());
  body(Constant<1>());
}

template <typename T, bool Grouped, bool RowStochastic, typename Launch>
void forward_scan_of(const ScanShape& s, const ScanPlan& plan, const ForwardPointers<T>& tensors, Launch& launch) {
  with_vector<T, 8>(plan.vector, [&](auto vector) {
    constexpr int V = decltype(vector)::value;
    const auto kernel = plan.single() ? scan_forward_kernel<T, V, Grouped, true, RowStochastic>
                                      : scan_forward_kernel<T, V, Grouped, false, RowStochastic>;
    launch(kernel, plan.blocks, plan.block(), plan.shared_bytes, parameters_of(s, plan, sizeof(T)), tensors);
  });
}

template <typename T, bool Grouped, bool RowStochastic, typename Launch>
void backward_scan_of(const ScanShape& s, const ScanPlan& plan, const BackwardPointers<T>& tensors, Launch& launch) {
  const auto start = [&](auto kernel) {
    launch(kernel, plan.blocks, plan.block(), plan.shared_bytes, parameters_of(s, plan, sizeof(T)), tensors);
  };
  if (plan.single())
    with_vector<T, widest_backward(Grouped, true)>(plan.vector, [&](auto vector) {
      start(scan_backward_kernel<T, decltype(vector)::value, Grouped, true, RowStochastic>);
    });
  else
    with_vector<T, widest_backward(Grouped, false)>(plan.vector, [&](auto vector) {
      start(scan_backward_kernel<T, decltype(vector)::value, Grouped, false, RowStochastic>);
    });
}

template <typename T, typename Launch>
void sum_parts(const float* parts, int64_t elements, int count, int64_t inner, int64_t outer, T* out, Launch& launch) {
  const int vector = inner == 1 && elements % 4 == 0 ? 4 : 1;
  const int64_t blocks = (elements / vector + 255) / 256;
  const auto kernel = vector == 4 ? sum_parts_kernel<T, 4> : sum_parts_kernel<T, 1>;
  launch(kernel, blocks, BlockThreads{256}, 0, parts, elements, count, inner, outer, out);
}

// Calls `body` with the widths of the kernels that read out on the spot.
template <typename T, int Widest, typename Body>
void with_wide_vector(int vector, Body&& body) {
  if constexpr (Widest >= 8 && sizeof(T) * 8 <= 16)
    if (vector == 8) return body(Constant<8>());
  body(Constant<4>());
}

template <typename T, typename Launch>
void forward_mix(const ScanShape& s, const ScanPlan& plan, const ForwardPointers<T>& tensors, Launch& launch) {
  const auto start = [&](auto kernel) {
    launch(kernel, plan.blocks, plan.block(), plan.shared_bytes, parameters_of(s, plan, sizeof(T)), tensors);
  };
  with_wide_vector<T, 8>(plan.vector, [&](auto vector) {
    constexpr int V = decltype(vector)::value;
    grouped(s) ? start(mix_forward_kernel<T, V, true, true, true>) : start(mix_forward_kernel<T, V, false, true, true>);
  });
}

template <typename T, typename Launch>
void forward_scan(const ScanShape& s, const ScanPlan& plan, const ForwardPointers<T>& tensors, Launch& launch) {
  if (s.reads_out) return forward_mix<T>(s, plan, tensors, launch);
  with_normalization(s.normalization, [&](auto normalization) {
    constexpr bool kRow = decltype(normalization)::value;
    if (grouped(s))
      forward_scan_of<T, true, kRow>(s, plan, tensors, launch);
    else
      forward_scan_of<T, false, kRow>(s, plan, tensors, launch);
  });
}

template <typename T, typename Launch>
void backward_mix_of(const ScanShape& s, const ScanPlan& plan, const BackwardPointers<T>& tensors, Launch& launch) {
  const auto start = [&](auto kernel) {
    launch(kernel, plan.blocks, plan.block(), plan.shared_bytes, parameters_of(s, plan, sizeof(T)), tensors);
  };
  if (grouped(s))
    with_wide_vector<T, widest_backward(true, true)>(plan.vector, [&](auto vector) {
      start(mix_backward_kernel<T, decltype(vector)::value, true, true, true>);
    });
  else
    start(mix_backward_kernel<T, widest_backward(false, true), false, true, true>);
}

template <typename T, typename Launch>
void backward_scan(const ScanShape& s, const ScanPlan& plan, BackwardPointers<T> tensors, float* dx_parts,
                   Launch& launch) {
  const int64_t pixels = s.batch * s.pixels(), elements = pixels * s.channels;
  for (int64_t k = 0; dx_parts && k < s.directions; k++) tensors.dx_parts[k] = dx_parts + k * elements;
  for (tensors.group_shift = 0; 1 << tensors.group_shift < plan.group_lanes;) tensors.group_shift++;
  tensors.parts = plan.parts;
  if (s.reads_out)
    backward_mix_of<T>(s, plan, tensors, launch);
  else
    with_normalization(s.normalization, [&](auto normalization) {
      constexpr bool kRow = decltype(normalization)::value;
      if (grouped(s))
        backward_scan_of<T, true, kRow>(s, plan, tensors, launch);
      else
        backward_scan_of<T, false, kRow>(s, plan, tensors, launch);
    });
  if (dx_parts) sum_parts<T>(dx_parts, elements, static_cast<int>(s.directions), 1, elements, tensors.dx, launch);
  if (tensors.dlogits_parts)
    sum_parts<T>(tensors.dlogits_parts, pixels * s.directions * 3 * s.groups, plan.parts, plan.parts, 1,
                 tensors.dlogits, launch);
}

}  // namespace gspn
