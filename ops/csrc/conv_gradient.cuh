// The gradient of the depthwise convolution's weights and bias, in two stages: each block sums over its pixels, and a
// second kernel over the blocks, in one order.
//
// A block takes in rows of g = dy (times the gate) and, pad rows behind, those of x: a row of x meets all rows of g
// that the kernel joins it with, which are kept in registers, and so are the sums, of a channel's weights.
#pragma once

#include "conv_pointers.h"
#include "conv_tile.cuh"

namespace gspn {
namespace conv {

template <int Size>
struct Products {
  float g[Size][kRun];     // the last rows, the youngest at the end
  float of[Size * Size];
  float of_bias;

  __device__ __forceinline__ Products() : of_bias(0.f) {
#pragma unroll
    for (int i = 0; i < Size * Size; i++) of[i] = 0.f;
    forget();
  }

  __device__ __forceinline__ void forget() {
#pragma unroll
    for (int i = 0; i < Size; i++)
#pragma unroll
      for (int q = 0; q < kRun; q++) g[i][q] = 0.f;
  }

  // `own`: a row of the block's own, which the bias has a part of.
  __device__ __forceinline__ void take_in(const float (&row)[kRun], bool own) {
#pragma unroll
    for (int i = 0; i < Size; i++)
#pragma unroll
      for (int q = 0; q < kRun; q++) g[i][q] = i + 1 < Size ? g[i + 1][q] : row[q];
    if (!own) return;
#pragma unroll
    for (int q = 0; q < kRun; q++) of_bias += row[q];
  }

  // A row of x, pad rows above the youngest of g: in the window of row Size - 1 - i of g it is the row i.
  __device__ __forceinline__ void add(const float (&x)[kRun + Size - 1]) {
#pragma unroll
    for (int i = 0; i < Size; i++)
#pragma unroll
      for (int j = 0; j < Size; j++)
#pragma unroll
        for (int q = 0; q < kRun; q++)
          of[i * Size + j] = fmaf(g[Size - 1 - i][q], x[q + j], of[i * Size + j]);
  }
};

template <typename T, int Size, bool Usual>
__global__ void __launch_bounds__(kThreads, resident_blocks(Size))
    conv_gradient_kernel(const __grid_constant__ ConvShape s, const __grid_constant__ ConvPlan p,
                         const __grid_constant__ GradientPointers<T> tensors) {
  constexpr int pad = Size / 2, taps = Size * Size, element = sizeof(T), g_bytes = kElements * element;
  const Task task(s, p);
  const Mover<T, Usual> mover(s, p, task);
  const int thread = threadIdx.x, lanes = mover.lanes, lane = thread % lanes, run = thread / lanes * kRun;
  const int height = static_cast<int>(s.height), stride = lanes * element;
  const bool gated = tensors.positive;
  const int x_bytes = kElements * element + (Size - 1) * stride;
  const Shared ring = in_register(static_cast<int>(shared_memory()));
  const Shared mine = (run * lanes + lane) * element;
  Places places(ring, x_bytes + (gated ? 2 * g_bytes : g_bytes));

  Walk next(s, task, pad, mover.channel), walk = next;
  const int64_t corner = pad * (next.pitch + s.channels);  // back to the border's first pixel
  const auto copy_rows = [&](Shared to) {
    if (next.images > 0) {
      if (next.row < height) {
        mover.template copy<0>(to + x_bytes, tensors.grad_y + next.place, task.column);
        if (gated) mover.template copy<0>(to + x_bytes + g_bytes, tensors.positive + next.place, task.column);
      }
      if (next.row - pad >= task.begin)
        mover.template copy<Size - 1>(to, tensors.x + (next.place - corner), task.column - pad);
    }
    commit_copies();
    next.advance();
  };
  for (int i = 0; i < kPlaces - 1; i++) copy_rows(ring + i * places.bytes);

  Products<Size> products;
#pragma unroll 1
  while (walk.images > 0) {
    products.forget();
    const int rows = walk.last - walk.first;
#pragma unroll 1
    for (int i = 0; i < rows; i++) {
      wait_for_copies<kPlaces - 2>();
      __syncthreads();
      copy_rows(places.before);
      float g[kRun] = {};
      if (walk.row < height) {
        read_columns<T>(places.at + mine + x_bytes, stride, g);
        if (gated) gate_columns<T>(places.at + mine + x_bytes + g_bytes, stride, g);
      }
      products.take_in(g, walk.row >= task.begin && walk.row < task.end);
      if (walk.row - pad >= task.begin) {
        float x[kRun + Size - 1];
        read_columns<T>(places.at + mine, stride, x);
        products.add(x);
      }
      places.advance();
      walk.advance();
    }
  }

  // The sum over the threads of a channel; all copies have landed, and their memory is free once all have read it.
  __syncthreads();
  const Shared of_bias = ring + kThreads * taps * 4;
#pragma unroll
  for (int i = 0; i < taps; i++) write_shared<1>(ring + (thread * taps + i) * 4, {products.of[i]});
  write_shared<1>(of_bias + thread * 4, {products.of_bias});
  __syncthreads();
  float* const parts = tensors.parts + task.part * s.channels * (taps + 1);
  const auto add_up = [&](Shared from, int index, int stride, float* to) {
    Packed<float, 1> sum;
    float total = 0.f, part[1];
    for (int i = 0; i < kThreads / lanes; i++) {
      read_shared<1>(from + (i * stride + index) * 4, part);
      total += part[0];
    }
    sum.set(0, total);
    store_packed<float, 1>(to + index, sum);
  };
  const int channels = static_cast<int>(min(int64_t{lanes}, s.channels - task.channel));
  for (int i = thread; i < channels * taps; i += kThreads)
    add_up(ring, i, lanes * taps, parts + int64_t{task.channel} * taps);
  if (thread < channels) add_up(of_bias, thread, lanes, parts + s.channels * taps + task.channel);
}

constexpr int kSumLanes = 32, kSumRows = 8;

// The second stage: the sum of the parts, by kSumRows threads each of every so many-th of them.
template <typename T>
__global__ void __launch_bounds__(kSumLanes* kSumRows)
    conv_sum_kernel(const float* parts, int64_t count, int64_t of_weights, int64_t elements, T* dweight, T* dbias) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kSumLanes + threadIdx.x;
  const Shared shared = shared_memory();
  float total[1] = {0.f};
  for (int64_t j = threadIdx.y; i < elements && j < count; j += kSumRows) {
    Packed<float, 1> part;
    load_once<float, 1>(part, parts + j * elements + i);
    total[0] += part.get(0);
  }
  write_shared<1>(shared + (threadIdx.y * kSumLanes + threadIdx.x) * 4, total);
  __syncthreads();
  if (threadIdx.y > 0 || i >= elements || (i >= of_weights && !dbias)) return;
  for (int j = 1; j < kSumRows; j++) {
    float row[1];
    read_shared<1>(shared + (j * kSumLanes + threadIdx.x) * 4, row);
    total[0] += row[0];
  }
  Packed<T, 1> rounded;
  rounded.set(0, total[0]);
  store_packed<T, 1>(i < of_weights ? dweight + i : dbias + (i - of_weights), rounded);
}

}  // namespace conv
}  // namespace gspn
