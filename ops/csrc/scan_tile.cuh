// The sum over the directions that a tiled block keeps in shared memory: of dx, or of y.
//
// The directions walk in step, each with threads of its own, and every pixel is met by each at a time of its own: right
// meets column c at line c of its pass, left at line W - 1 - c. These two never meet at one pixel, as W is even, and
// neither do down and up. Right or left may meet down or up: down and up then come second, behind a barrier between the
// turns. So the order of a pixel's sum follows from its place, and so does who is the first there, and who the last.
#pragma once

#include "scan_task.cuh"

namespace gspn {

struct Tile {
  Shared at;         // this lane's sum at the pixel, in parts as in Slots
  int part_stride;   // bytes from part to part
  int step;          // bytes from item to item
  int first, last;   // at so many lines left and more this direction is its pixel's first, at so many and fewer its last
  bool waits, goes;  // it takes the second turn, or the first; without others neither

  // The first item is at `pixel`; Step as in Cursor. Of unequal sides the shorter pass ends earlier; backward it begins
  // later.
  template <int V, int Step>
  static __device__ __forceinline__ Tile of(const ScanParameters& p, const Walk& walk, int pixel, int position,
                                            bool sums) {
    const int stride = blockDim.x * (V * 4);
    const int idle = Step > 0 ? p.task_lines - walk.lines : 0, idle_across = Step > 0 ? p.task_lines - walk.length : 0;
    const int half = idle + walk.lines / 2, near_end = idle_across + min(position, walk.length - 1 - position);
    const int far_end = idle_across + max(position + 1, walk.length - position);
    const bool second = walk.position_stride == 1;
    Tile tile;
    tile.at = shared_memory() + p.tile_offset * 4 + threadIdx.x * (Slots<V>::kWidth * 4) + pixel * stride;
    tile.part_stride = blockDim.x * (Slots<V>::kWidth * 4);
    tile.step = Step * walk.line_stride * stride;
    tile.first = sums ? max(far_end + second, half + 1) : 0;
    tile.last = sums ? min(near_end + second, half) : p.task_lines;
    tile.waits = sums && second;
    tile.goes = sums && !second;
    return tile;
  }

  __device__ __forceinline__ void advance() { at += step; }

  // Calls `body` when it is this direction's turn; between the turns the block meets.
  template <typename Body>
  __device__ __forceinline__ void take_turn(Body&& body) const {
    meet_if(waits);
    body();
    meet_if(goes);
  }

  __device__ __forceinline__ bool keeps(int lines_left) const { return lines_left > last; }

  // Adds what the directions before have left to `values`, and leaves the sum to the next.
  template <int Width>
  __device__ __forceinline__ void sum(int lines_left, int part, float (&values)[Width]) const {
    const Shared here = at + part * part_stride;
    if (lines_left < first) {
      float before[Width];
      read_shared<Width>(here, before);
#pragma unroll
      for (int i = 0; i < Width; i++) values[i] += before[i];
    }
    if (keeps(lines_left)) write_shared<Width>(here, values);
  }
};

}  // namespace gspn
