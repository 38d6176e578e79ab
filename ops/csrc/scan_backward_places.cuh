// Where a backward thread reads and writes.
#pragma once

#include "scan_task.cuh"

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

// Where an item's inputs lie: grad_h, x and lam of its pixel, h of the pixels before it, its logits.
template <typename T, bool Single>
struct BackwardSource {
  Pointer<const T, Single> grad_h, x, lam, h, logits[3];

  __device__ __forceinline__ void advance() {
    grad_h.advance(), x.advance(), lam.advance(), h.advance();
#pragma unroll
    for (int d = 0; d < 3; d++) logits[d].advance();
  }
};

// Where a direction's dx goes: to its float32 part in memory; into the sum that a tiled block keeps in shared memory; or,
// of the only direction or the last one of a tiled block, to the final dx.
template <typename T, bool Single>
struct DxTarget {
  Pointer<char, Single> at;  // of the part, or of dx
  Shared tile;               // this lane's sum at the pixel, or at the first pixel
  int stride, tile_stride;   // bytes from pixel to pixel
  int tile_step;             // Single: and from item to item
  bool to_part, adds, keeps;

  __device__ __forceinline__ Shared tile_at(int pixel) const { return Single ? tile : tile + pixel * tile_stride; }

  __device__ __forceinline__ void advance() {
    at.advance();
    if constexpr (Single) tile += tile_step;
  }

  // Adds what the directions before have left, and leaves the sum to the next.
  template <int Width>
  __device__ __forceinline__ void sum(int pixel, int part_bytes, float (&values)[Width]) const {
    const Shared here = tile_at(pixel) + part_bytes;
    if (adds) {
      float before[Width];
      read_shared<Width>(here, before);
#pragma unroll
      for (int i = 0; i < Width; i++) values[i] += before[i];
    }
    if (keeps) write_shared<Width>(here, values);
  }
};

// Where what comes of an item goes.
template <typename T, bool Single>
struct BackwardTarget {
  DxTarget<T, Single> dx;
  Pointer<T, Single> dlam;
  Pointer<char, Single> dlogits[3];  // or their parts
  int logits_stride;

  __device__ __forceinline__ void advance() {
    dx.advance(), dlam.advance();
#pragma unroll
    for (int d = 0; d < 3; d++) dlogits[d].advance();
  }
};

}  // namespace gspn
