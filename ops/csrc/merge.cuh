// The gated merge on CUDA: y = sum over k of u_k h_k, and backward dh_k = u_k g, du_k = h_k g; without u (null) every gate
// is 1. A thread takes V neighbouring channels of one pixel, in all directions.
#pragma once

#include "block_threads.h"
#include "cuda_primitives.cuh"
#include "merge_shape.h"

namespace gspn {

constexpr int kMergeAtOnce = 4;  // directions whose inputs a thread has in flight

// A thread's first element of h, or -1 past the end; `of_y` is its element of y.
template <int V>
__device__ __forceinline__ int64_t merge_place(const MergeShape& s, int64_t& of_y) {
  of_y = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * V;
  const int64_t pixel = of_y / s.channels;
  if (pixel >= s.pixels) return -1;
  return of_y + pixel * (s.directions - 1) * s.channels;
}

// Some directions of a place, from direction k on.
template <typename T, int V>
struct MergeInputs {
  Packed<T, V> h[kMergeAtOnce], u[kMergeAtOnce];

  __device__ __forceinline__ void load(const MergeShape& s, int64_t k, const T* from_h, const T* from_u) {
#pragma unroll
    for (int i = 0; i < kMergeAtOnce; i++) {
      if (k + i >= s.directions) break;
      load_once<T, V>(h[i], from_h + (k + i) * s.channels);
      if (from_u) load_once<T, V>(u[i], from_u + (k + i) * s.channels);
    }
  }
};

template <typename T, int V>
__global__ void __launch_bounds__(kMergeThreads)
    merge_forward_kernel(const __grid_constant__ MergeShape s, const T* h, const T* u, T* y) {
  int64_t of_y;
  const int64_t at = merge_place<V>(s, of_y);
  if (at < 0) return;
  float sum[V];
#pragma unroll
  for (int v = 0; v < V; v++) sum[v] = 0.f;
  for (int64_t k = 0; k < s.directions; k += kMergeAtOnce) {
    MergeInputs<T, V> in;
    in.load(s, k, h + at, u ? u + at : nullptr);
#pragma unroll
    for (int i = 0; i < kMergeAtOnce; i++) {
      if (k + i >= s.directions) break;
#pragma unroll
      for (int v = 0; v < V; v++) sum[v] = fmaf(u ? in.u[i].get(v) : 1.f, in.h[i].get(v), sum[v]);
    }
  }
  Packed<T, V> rounded;
#pragma unroll
  for (int v = 0; v < V; v++) rounded.set(v, sum[v]);
  store_packed<T, V>(y + of_y, rounded);
}

template <typename T, int V>
__device__ __forceinline__ void store_product(T* to, const Packed<T, V>& a, const Packed<T, V>& b) {
  Packed<T, V> rounded;
#pragma unroll
  for (int v = 0; v < V; v++) rounded.set(v, a.get(v) * b.get(v));
  store_packed<T, V>(to, rounded);
}

template <typename T, int V>
__global__ void __launch_bounds__(kMergeThreads)
    merge_backward_kernel(const __grid_constant__ MergeShape s, const T* grad_y, const T* h, const T* u, T* dh, T* du) {
  int64_t of_y;
  const int64_t at = merge_place<V>(s, of_y);
  if (at < 0) return;
  Packed<T, V> g;
  load_once<T, V>(g, grad_y + of_y);
  for (int64_t k = 0; !u && k < s.directions; k++) store_packed<T, V>(dh + at + k * s.channels, g);
  for (int64_t k = 0; u && k < s.directions; k += kMergeAtOnce) {
    MergeInputs<T, V> in;
    in.load(s, k, h + at, u + at);
#pragma unroll
    for (int i = 0; i < kMergeAtOnce; i++) {
      if (k + i >= s.directions) break;
      store_product<T, V>(dh + at + (k + i) * s.channels, in.u[i], g);
      store_product<T, V>(du + at + (k + i) * s.channels, in.h[i], g);
    }
  }
}

// Channels in a thread: as many as one access of 16 bytes moves, if rows and addresses are aligned to it.
template <typename T>
int merge_vector(const MergeShape& s, int64_t alignment) {
  int vector = 16 / sizeof(T);
  while (s.channels % vector != 0 || alignment % (vector * sizeof(T)) != 0) vector /= 2;
  return vector;
}

template <int Vector>
struct MergeVector {
  static constexpr int value = Vector;
};

template <typename T, typename Body>
void with_merge_vector(int vector, Body&& body) {
  if constexpr (sizeof(T) == 2)
    if (vector == 8) return body(MergeVector<8>());
  if (vector == 4) return body(MergeVector<4>());
  if (vector == 2) return body(MergeVector<2>());
  body(MergeVector<1>());
}

// `launch` as in scan_dispatch.cuh.
template <typename T, typename Launch>
void start_merge(const MergeShape& s, int vector, const T* h, const T* u, T* y, Launch& launch) {
  with_merge_vector<T>(vector, [&](auto constant) {
    const auto kernel = merge_forward_kernel<T, decltype(constant)::value>;
    launch(kernel, merge_blocks(s, vector), BlockThreads{kMergeThreads}, 0, s, h, u, y);
  });
}

template <typename T, typename Launch>
void start_merge_backward(const MergeShape& s, int vector, const T* grad_y, const T* h, const T* u, T* dh, T* du,
                          Launch& launch) {
  with_merge_vector<T>(vector, [&](auto constant) {
    const auto kernel = merge_backward_kernel<T, decltype(constant)::value>;
    launch(kernel, merge_blocks(s, vector), BlockThreads{kMergeThreads}, 0, s, grad_y, h, u, dh, du);
  });
}

}  // namespace gspn
