// Where a backward thread reads and writes.
#pragma once

#include "scan_tile.cuh"

namespace gspn {

template <typename T, int V>
__device__ __forceinline__ void store_rounded(T* to, const float (&values)[V]) {
  Packed<T, V> rounded;
  rounded.set_all(values);
  store_packed<T, V>(to, rounded);
}

template <int N>
__device__ __forceinline__ void store_floats(float* to, const float (&values)[N]) {
  Packed<float, N> packed;
#pragma unroll
  for (int i = 0; i < N; i++) packed.set(i, values[i]);
  store_packed<float, N>(to, packed);
}

// Where an item's inputs lie: the gradient, x, lam and u of its pixel, h of the pixels before it, its logits.
template <typename T, bool Single>
struct BackwardSource {
  Pointer<const T, Single> grad, x, lam, u, h, logits[3];  // grad: of h, or of y where there is a u

  __device__ __forceinline__ void advance() {
    grad.advance(), x.advance(), lam.advance(), u.advance(), h.advance();
#pragma unroll
    for (int d = 0; d < 3; d++) logits[d].advance();
  }
};

// Where a direction's dx goes: to its float32 part in memory; into the sum that a tiled block keeps in shared memory; or,
// of the only direction or the last one of a tiled block, to the final dx.
template <typename T, bool Single>
struct DxTarget {
  Pointer<char, Single> at;  // of the part, or of dx
  Tile tile;  // Single
  int stride;  // bytes from pixel to pixel
  bool to_part;

  __device__ __forceinline__ void advance() {
    at.advance();
    if constexpr (Single) tile.advance();
  }
};

// Where what comes of an item goes.
template <typename T, bool Single>
struct BackwardTarget {
  DxTarget<T, Single> dx;
  Pointer<T, Single> dlam, du;  // du: of kernels that have a u
  Pointer<char, Single> dlogits[3];  // or their parts
  int logits_stride;

  __device__ __forceinline__ void advance() {
    dx.advance(), dlam.advance(), du.advance();
#pragma unroll
    for (int d = 0; d < 3; d++) dlogits[d].advance();
  }
};

}  // namespace gspn
