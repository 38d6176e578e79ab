// The depthwise convolution, equation (7) of README.md, and its transpose, the gradient of the input.
//
// The outputs that a row of the input has a part in are summed in registers: Size rows of kRun columns, all of which a
// row is added to when it comes in. With each row the sums move up by one, by being added to in their new place; the
// first then has all of its parts, and goes out by way of shared memory, so that memory is written by wide accesses.
#pragma once

#include "conv_pointers.h"
#include "conv_tile.cuh"

namespace gspn {
namespace conv {

// Copies the weights of the block's channels as they lie, by words if they are aligned.
template <typename T>
__device__ __forceinline__ void copy_weights(Shared to, const T* from, int64_t first, int elements) {
  constexpr int pair = 4 / sizeof(T);
  from += first;
  const int words = reinterpret_cast<uintptr_t>(from) % 4 == 0 ? elements / pair : 0;
  for (int i = threadIdx.x; i < words; i += kThreads) start_copy<4>(to + i * 4, from + i * pair, true, true);
  for (int i = words * pair + threadIdx.x; i < elements; i += kThreads)
    start_copy<sizeof(T)>(to + i * sizeof(T), from + i, true, true);
}

template <int Size>
struct Sums {
  float of[Size][kRun];

  __device__ __forceinline__ void set_all(float value) {
#pragma unroll
    for (int i = 0; i < Size; i++)
#pragma unroll
      for (int q = 0; q < kRun; q++) of[i][q] = value;
  }

  // A row comes in that holds nothing.
  __device__ __forceinline__ void shift(float bias) {
#pragma unroll
    for (int i = 0; i < Size; i++)
#pragma unroll
      for (int q = 0; q < kRun; q++) of[i][q] = i + 1 < Size ? of[i + 1][q] : bias;
  }

  // A row comes in: to sum i it is the row Size - 1 - i of the kernel's window.
  __device__ __forceinline__ void add(const float (&weights)[Size * Size], const float (&x)[kRun + Size - 1],
                                      float bias) {
#pragma unroll
    for (int i = 0; i < Size; i++)
#pragma unroll
      for (int q = 0; q < kRun; q++) {
        float sum = i + 1 < Size ? of[i + 1][q] : bias;
#pragma unroll
        for (int j = 0; j < Size; j++) sum = fmaf(weights[(Size - 1 - i) * Size + j], x[q + j], sum);
        of[i][q] = sum;
      }
  }
};

template <typename T, int Size, bool Usual>
__global__ void __launch_bounds__(kThreads, resident_blocks(Size))
    conv_forward_kernel(const __grid_constant__ ConvShape s, const __grid_constant__ ConvPlan p,
                        const __grid_constant__ ForwardPointers<T> tensors) {
  constexpr int pad = Size / 2, taps = Size * Size, element = sizeof(T), staged = kElements * element;
  const Task task(s, p);
  const Mover<T, Usual> mover(s, p, task);
  const int thread = threadIdx.x, lanes = mover.lanes, lane = thread % lanes, run = thread / lanes * kRun;
  const int height = static_cast<int>(s.height), stride = lanes * element;
  const bool gated = tensors.positive;
  const int row_bytes = kElements * element + (Size - 1) * stride;
  const Shared ring = in_register(static_cast<int>(shared_memory()));
  Places places(ring, gated ? 2 * row_bytes : row_bytes);
  const Shared rows_out = ring + kPlaces * places.bytes;
  const int out_bytes = tensors.relu ? 2 * staged : staged;
  const Shared of_weights = rows_out + 2 * out_bytes;
  const Shared mine = (run * lanes + lane) * element;  // within a row: the first column that a thread reads or writes

  Walk next(s, task, pad, mover.channel);
  const int64_t corner = pad * s.channels;  // back to the border's first column
  const T* const from = in_register(tensors.x - corner);
  const auto copy_row = [&](Shared to) {
    if (next.images > 0 && next.row < height) {
      const int left = task.column - pad;
      mover.template copy<Size - 1>(to, from + next.place, left);
      if (gated) mover.template copy<Size - 1>(to + row_bytes, tensors.positive - corner + next.place, left);
    }
    commit_copies();
    next.advance();
  };

  const int elements = static_cast<int>(min(int64_t{lanes}, s.channels - task.channel)) * taps;
  copy_weights(of_weights, tensors.weights, int64_t{task.channel} * taps, elements);
  int64_t place = next.place + (task.begin - next.first) * next.pitch;  // where the next row goes out
  for (int i = 0; i < kPlaces - 1; i++) copy_row(ring + i * places.bytes);

  wait_for_copies<kPlaces - 2>();
  __syncthreads();
  const bool exists = task.channel + lane < s.channels;
  const int step = tensors.turned ? -element : element;
  const Shared first = of_weights + lane * taps * element + (tensors.turned ? (taps - 1) * element : 0);
  float weights[taps], bias = 0.f;
#pragma unroll
  for (int i = 0; i < taps; i++) weights[i] = exists ? read_element<T>(first + i * step) : 0.f;
  if (tensors.bias && exists) {
    Packed<T, 1> packed;
    load_shared_input<T, 1>(packed, tensors.bias + task.channel + lane);
    bias = packed.get(0);
  }

  Sums<Size> sums;
  Shared out = rows_out;  // the row that goes out next
  const auto store_row = [&] {
    mover.store(out, tensors.y + place, task.column);
    if (tensors.relu) mover.store(out + staged, tensors.relu + place, task.column);
    place += next.pitch;
  };
  // Between two rows: the one before has been read by all, and what it gave has been written by all.
  const auto begin_row = [&](int row) {
    wait_for_copies<kPlaces - 2>();
    __syncthreads();
    copy_row(places.before);
    if (row - pad > task.begin) store_row();
  };
  const auto end_row = [&](int row) {
    places.advance();
    if (row - pad < task.begin) return;
    out = 2 * rows_out + out_bytes - out;
    const Shared to = out + mine;
    float y[kRun];
#pragma unroll
    for (int q = 0; q < kRun; q++) y[q] = sums.of[0][q];
    if (tensors.square) {
#pragma unroll
      for (int q = 0; q < kRun; q++) {
        const float relu = y[q] < 0.f ? 0.f : y[q];  // NaN stays
        if (tensors.relu) write_element<T>(to + staged + q * stride, relu);
        y[q] = relu * relu;
      }
    }
#pragma unroll
    for (int q = 0; q < kRun; q++) write_element<T>(to + q * stride, y[q]);
  };

#pragma unroll 1
  for (int images = static_cast<int>(task.last_image - task.image); images > 0; images--) {
    sums.set_all(bias);
    int row = next.first;
#pragma unroll 1
    for (const int end = min(next.last, height); row < end; row++) {
      begin_row(row);
      float x[kRun + Size - 1];
      read_columns<T>(places.at + mine, stride, x);
      if (gated) gate_columns<T>(places.at + mine + row_bytes, stride, x);
      sums.add(weights, x, bias);
      end_row(row);
    }
#pragma unroll 1
    for (; row < next.last; row++) {
      begin_row(row);
      sums.shift(bias);
      end_row(row);
    }
    __syncthreads();
    store_row();
    place += (s.height - (task.end - task.begin)) * next.pitch;
  }
}

}  // namespace conv
}  // namespace gspn
