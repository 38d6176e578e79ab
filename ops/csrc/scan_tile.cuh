// The sum over the directions that a tiled block keeps in shared memory: of dx, or of y.
#pragma once

#include "scan_task.cuh"

namespace gspn {

// A lane's V floats of every pixel, in parts as in Slots, that many bytes apart.
template <bool Single>
struct Tile {
  Shared at;         // this lane's sum at the pixel (Single), or at the first pixel
  int stride, step;  // bytes from pixel to pixel; Single: from item to item
  bool adds, keeps;  // there is a direction before this one, or after it

  template <int V>
  static __device__ __forceinline__ Tile of(int offset, int first_pixel, int pixel_step, bool adds, bool keeps) {
    const int stride = blockDim.x * (V * 4);
    const Shared lane = shared_memory() + offset * 4 + threadIdx.x * (Slots<V>::kWidth * 4);
    return {lane + (Single ? first_pixel * stride : 0), stride, pixel_step * stride, adds, keeps};
  }

  __device__ __forceinline__ void advance() {
    if constexpr (Single) at += step;
  }

  // Adds what the directions before have left to `values`, and leaves the sum to the next.
  template <int Width>
  __device__ __forceinline__ void sum(int pixel, int part, float (&values)[Width]) const {
    const Shared here = at + (Single ? 0 : pixel * stride) + part * blockDim.x * (Width * 4);
    if (adds) {
      float before[Width];
      read_shared<Width>(here, before);
#pragma unroll
      for (int i = 0; i < Width; i++) values[i] += before[i];
    }
    if (keeps) write_shared<Width>(here, values);
  }
};

}  // namespace gspn
