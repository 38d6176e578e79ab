// Which part of the scan a CUDA thread does, and how it walks there.
//
// A block is (lanes, rows) threads. A lane is V neighbouring channels of one image, in one segment when the pass
// restarts; the rows of a block share out the positions of a line, `run` positions each. So neighbouring threads
// take neighbouring channels, every access is coalesced in every direction, and a step from line to line needs from
// the other threads only the edges of their runs, through shared memory with one barrier.
#pragma once

#include "cuda_primitives.cuh"

namespace gspn {

// A direction's LineWalk, in the 32 bits that suffice for the pixels of one image.
struct Walk {
  int lines, length, start, line_stride, position_stride;
};

struct ScanParameters {
  int64_t batch;
  int pixels, directions, channels, groups;
  int x_stride, lam_stride, logits_stride;  // bytes from pixel to pixel
  int period;       // lines from restart to restart; at least every direction's lines when there are no restarts
  int normalization;
  int run;          // positions of a line in one thread
  bool tiled;       // backward: a block does all directions and sums dx in shared memory
  int tile_offset;  // floats of shared memory before that sum
  Walk walks[4];
};

template <int V>
struct Task {
  int64_t image;
  int first_line, position, channel;
  bool exists;

  // Lanes count channels fastest, then segments, then images. A tiled block walks over all segments itself.
  __device__ __forceinline__ Task(const ScanParameters& p, int lines, int64_t tile) {
    const int vectors = p.channels / V;
    const int segments = p.tiled ? 1 : (lines + p.period - 1) / p.period;
    const int64_t lane = tile * blockDim.x + threadIdx.x;
    const int64_t scan = lane / vectors;
    channel = static_cast<int>(lane - scan * vectors) * V;
    image = scan / segments;
    first_line = static_cast<int>(scan - image * segments) * p.period;
    position = threadIdx.y * p.run;
    exists = image < p.batch;
    if (!exists) image = 0;
  }
};

// The items of a task in the order in which it meets them: the places of its run, line after line. `Step` is +1
// from the first line on, -1 from the last line back.
template <bool Single, int Step>
struct Cursor {
  int line, place, pixel;
  int phase;  // lines since the restart: more than one segment is met by a tiled pass alone

  __device__ __forceinline__ Cursor(const Walk& walk, int first_line, int position, int start, int period)
      : line(start),
        place(0),
        pixel(walk.start + (first_line + start) * walk.line_stride + position * walk.position_stride),
        phase(start % period) {}

  __device__ __forceinline__ void advance(const Walk& walk, int run, int period) {
    if (Single || ++place == run) {
      place = 0;
      line += Step;
      if (Step > 0)
        phase = phase + 1 == period ? 0 : phase + 1;
      else
        phase = (phase == 0 ? period : phase) - 1;
      pixel += Step * walk.line_stride - (Single ? 0 : (run - 1) * walk.position_stride);
    } else {
      pixel += walk.position_stride;
    }
  }
};

// `bytes` after `base`: what a pixel's number times a stride gives, in one instruction.
template <typename T>
__device__ __forceinline__ T* offset(T* base, int64_t bytes) {
  return reinterpret_cast<T*>(reinterpret_cast<uintptr_t>(base) + bytes);
}

// Where a thread keeps float values for itself and its neighbours in shared memory: numbered slots of V floats, in
// parts of 4 (of 1 when V = 1), laid out so that a warp's accesses to a part are contiguous.
template <int V>
struct Slots {
  static constexpr int kWidth = V < 4 ? 1 : 4;
  static constexpr int kParts = V / kWidth;
  using Part = float[kWidth];
  float* mine;
  int part_stride;  // floats from part to part
  int row_stride;   // floats to the same lane in the next row

  // Before the first row and after the last there is one more, which stays 0.
  __device__ __forceinline__ Slots() {
    row_stride = blockDim.x * kWidth;
    part_stride = row_stride * (blockDim.y + 2);
    mine = shared_memory() + threadIdx.x * kWidth + (threadIdx.y + 1) * row_stride;
  }

  __device__ __forceinline__ float* at(int slot, int part) const { return mine + (slot * kParts + part) * part_stride; }

  __device__ __forceinline__ void clear_all(int slots) const {
    Part zero = {};
    for (int i = 0; i < slots * kParts; i++) {
      float* own = mine + i * part_stride;
      write_shared<kWidth>(own, zero);
      if (threadIdx.y == 0) write_shared<kWidth>(own - row_stride, zero);
      if (threadIdx.y + 1 == blockDim.y) write_shared<kWidth>(own + row_stride, zero);
    }
    __syncthreads();
  }

  // `rows` is 0 for the thread's own slot, -1 or +1 for its neighbour's.
  __device__ __forceinline__ void read(int slot, int part, int rows, Part& values) const {
    read_shared<kWidth>(at(slot, part) + rows * row_stride, values);
  }

  __device__ __forceinline__ void write(int slot, int part, const Part& values) const {
    write_shared<kWidth>(at(slot, part), values);
  }
};

template <int N>
__device__ __forceinline__ void clear(float (&values)[N]) {
#pragma unroll
  for (int i = 0; i < N; i++) values[i] = 0.f;
}

// The logits of one position: V of each neighbour, or one of each when the V channels share a group. A neighbour that
// does not exist, before the first position of a line or after its last, gets `missing`.
template <typename T, int V, bool Grouped>
struct Logits {
  static constexpr int kCount = Grouped ? 1 : V;
  Packed<T, kCount> raw[3];

  __device__ __forceinline__ void load(const T* from, int groups, int n, int length, float missing) {
#pragma unroll
    for (int d = 0; d < 3; d++) {
      if (d == 0 ? n == 0 : d == 2 && n + 1 == length) {
        raw[d].fill(missing);
      } else if constexpr (Grouped) {
        load_shared_input<T, kCount>(raw[d], from + static_cast<int64_t>(d) * groups);
      } else {
        load_once<T, kCount>(raw[d], from + static_cast<int64_t>(d) * groups);
      }
    }
  }

  __device__ __forceinline__ void get(int i, float (&l)[3]) const {
#pragma unroll
    for (int d = 0; d < 3; d++) l[d] = raw[d].get(i);
  }
};

}  // namespace gspn
