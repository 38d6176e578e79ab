// Which part of the scan a CUDA thread does, and how it walks there.
//
// A block is (lanes, rows, planes) threads. A lane is V neighbouring channels of one image, in some of its segments when
// the pass restarts; the rows of a block share out the positions of a line, `run` positions each. So neighbouring threads
// take neighbouring channels, every access is coalesced in every direction, and what a step from line to line needs from
// the other threads goes through shared memory, with one barrier. A block does one direction, or, tiled, all of them at
// once: each has a plane.
#pragma once

#include "cuda_primitives.cuh"

namespace gspn {

// Divides numbers below 2^31 by one that the host knows, in three instructions for some fifteen: with 2^shift the power
// of two from `value` on, n / value = n (1 + (2^shift - value) / value) / 2^shift, the fraction rounded up in 2^32nds.
struct Divisor {
  unsigned value, fraction;
  int shift;

  static Divisor of(int64_t value) {
    int shift = 0;
    while (int64_t{1} << shift < value) shift++;
    const uint64_t rest = (uint64_t{1} << shift) - value;
    return {static_cast<unsigned>(value), static_cast<unsigned>((rest << 32) / value + 1), shift};
  }

  __device__ __forceinline__ unsigned quotient(unsigned n) const { return (high_product(n, fraction) + n) >> shift; }
};

// A direction's LineWalk, in the 32 bits that suffice for the pixels of one image.
struct Walk {
  int lines, length, start, line_stride, position_stride;
  Divisor tasks;  // of a pass

  __device__ __forceinline__ Walk in_registers() const {
    return {in_register(lines), in_register(length), start, in_register(line_stride), in_register(position_stride), tasks};
  }
};

struct ScanParameters {
  int64_t batch;
  int pixels, channels, groups;
  Divisor directions, vectors, heads;  // vectors of V channels; heads: channels of a group
  int x_stride, lam_stride, logits_stride;  // bytes from pixel to pixel
  int period;       // lines from restart to restart; at least every direction's lines when there are no restarts
  int task_lines;   // lines of a task: whole periods
  bool sigmoid;     // the normalisation, where it is not row-stochastic: sigmoid or none
  int run;          // positions of a line in one thread
  bool tiled;       // a block does all directions at once and sums dx, or y, in shared memory
  int tile_offset;  // floats of shared memory before that sum
  int ring_offset;  // floats of shared memory before the ring
  Walk walks[4];
};

template <int V>
struct Task {
  int64_t image;
  int first_line, channel;
  bool exists;

  // Lanes count channels fastest, then the tasks of a pass, then images.
  __device__ __forceinline__ Task(const ScanParameters& p, const Walk& walk, unsigned tile) {
    const unsigned lane = tile * blockDim.x + threadIdx.x, scan = p.vectors.quotient(lane);
    channel = static_cast<int>(lane - scan * p.vectors.value) * V;
    const unsigned of_image = walk.tasks.quotient(scan);
    image = of_image;
    first_line = static_cast<int>(scan - of_image * walk.tasks.value) * p.task_lines;
    exists = image < p.batch;
    if (!exists) image = 0;
  }
};

// The positions of a line that a thread has: `run` of them, `step` apart. Single: there is one.
template <bool Single>
struct Run {
  int first, last, step;
  int pixels, back;  // from one to the next, and from the last to the first

  __device__ __forceinline__ Run(const Walk& walk, int first, int run, int step)
      : first(first), last(Single ? first : first + (run - 1) * step), step(step),
        pixels(step * walk.position_stride), back(Single ? 0 : (run - 1) * pixels) {}
};

// The items of a task in the order in which it meets them: the positions of its run, line after line. `Step` is +1
// from the first line on, -1 from the last line back.
template <bool Single, int Step>
struct Cursor {
  int lines;     // counts down
  int restart;   // `lines` at the line, this or one to come, where the pass starts anew
  int n, pixel;  // the position in the line

  __device__ __forceinline__ Cursor(int first, int first_restart, int first_position, int first_pixel)
      : lines(first), restart(first_restart), n(first_position), pixel(first_pixel) {}

  __device__ __forceinline__ bool restarts() const { return lines == restart; }

  __device__ __forceinline__ void advance(const Walk& walk, const Run<Single>& run, int period) {
    if (Single || n == run.last) {
      if (!Single) n = run.first;
      if (lines == restart) restart -= period;
      lines--;
      pixel += Step * walk.line_stride - run.back;
    } else {
      n += run.step;
      pixel += run.pixels;
    }
  }
};

// `bytes` after `base`: what a pixel's number times a stride gives, in one instruction.
template <typename T>
__device__ __forceinline__ T* offset(T* base, int64_t bytes) {
  return reinterpret_cast<T*>(reinterpret_cast<uintptr_t>(base) + bytes);
}

// A pointer that follows a cursor. One position (Single) moves it by the same step each time; places of a run are found
// from the pixel's number.
template <typename T, bool Single>
struct Pointer {
  T* at;
  int64_t step;  // Single: bytes

  __device__ __forceinline__ Pointer(T* first, const Walk& walk, int direction, int pixel, int stride)
      : at(Single ? at_pixel(first, pixel, stride) : first), step(int64_t{direction * walk.line_stride} * stride) {}

  __device__ __forceinline__ T* get(int pixel, int stride) const { return Single ? at : at_pixel(at, pixel, stride); }

  __device__ __forceinline__ void advance() {
    if constexpr (Single) at = in_register(offset(at, step));
  }
};

// Where a thread keeps float values for itself and its neighbours in shared memory: numbered slots of V floats, in
// parts of 4 (of 1 when V = 1), laid out so that a warp's accesses to a part are contiguous.
template <int V>
struct Slots {
  static constexpr int kWidth = V < 4 ? 1 : 4;
  static constexpr int kParts = V / kWidth;
  using Part = float[kWidth];
  Shared mine;
  int part_stride;  // bytes from part to part
  int row_stride;   // bytes to the same lane in the next row

  // So many slots of so many rows, its plane's behind those of the planes before. Before the first row and after the last
  // there is one more, which stays 0.
  __device__ __forceinline__ Slots(int slots, int rows, int plane) {
    row_stride = blockDim.x * kWidth * 4;
    part_stride = row_stride * (rows + 2);
    mine = shared_memory() + threadIdx.x * (kWidth * 4) + (threadIdx.y + 1) * row_stride +
           plane * slots * kParts * part_stride;
  }

  __device__ __forceinline__ Shared at(int slot, int part) const { return mine + (slot * kParts + part) * part_stride; }

  // `run`: rows of each thread, as far apart as there are threads.
  __device__ __forceinline__ void clear_all(int slots, int run) const {
    Part zero = {};
    for (int i = 0; i < slots * kParts; i++) {
      Shared own = mine + i * part_stride;
      if (threadIdx.y == 0) write_shared<kWidth>(own - row_stride, zero);
#pragma unroll 1
      for (int more = run - 1; more > 0; more--) {
        write_shared<kWidth>(own, zero);
        own += blockDim.y * row_stride;
      }
      write_shared<kWidth>(own, zero);
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

// Where a thread finds its group's logits in the first place of its ring: 16 bits lie in either half of a word.
template <typename T, int V, bool Single>
struct WordLanes {
  static constexpr bool kHalves = V > 1 && sizeof(T) == 2;
  Shared words, outer, middle;  // outer: of the neighbours before and after, `groups` elements from the middle one
  unsigned first, stride, flip;

  // `from`: the first pixel's logit of the first neighbour. Single: items are `step` pixels apart, from `pixel` on.
  __device__ __forceinline__ WordLanes(Shared lane, const T* from, int groups, int logits_stride, int pixel, int step)
      : words(lane),
        first(static_cast<unsigned>(reinterpret_cast<uintptr_t>(from))),
        stride(logits_stride),
        flip(logits_stride * step & 2) {
    outer = words + half(pixel);
    middle = outer ^ (groups * 2 & 2);
  }

  __device__ __forceinline__ unsigned half(int pixel) const { return kHalves ? (first + pixel * stride) & 2 : 0; }

  __device__ __forceinline__ void move_to(int pixel) {
    const unsigned between = outer ^ middle;
    outer = Single ? outer ^ flip : words + half(pixel);
    middle = Single ? middle ^ flip : outer ^ between;
  }

  __device__ __forceinline__ Shared get(int d) const { return !kHalves ? words : d == 1 ? middle : outer; }
};

// The logits of one position: V of each neighbour, or one of each when the V channels share a group.
template <typename T, int V, bool Grouped>
struct Logits {
  static constexpr int kCount = Grouped ? 1 : V;
  static constexpr int kFields = Grouped ? 0 : 3, kWords = Grouped ? 3 : 0;  // of a ring's place
  Packed<T, kCount> raw[3];

  // Those of neighbours that do not exist, before the first position of a line or after its last, are 0 in the ring.
  template <typename Ring, typename Pointer>
  static __device__ __forceinline__ void stage(const Ring& ring, int first_field, const Pointer (&from)[3], int pixel,
                                               int stride, int n, int length, bool exists, bool wanted) {
#pragma unroll
    for (int d = 0; d < 3; d++) {
      const bool there = exists && (d == 0 ? n > 0 : d == 2 ? n + 1 < length : true);
      if constexpr (Grouped)
        ring.copy_word(d, from[d].get(pixel, stride), there, wanted);
      else
        ring.copy(first_field + d, from[d].get(pixel, stride), there, wanted);
    }
  }

  template <typename Ring, typename Lanes>
  __device__ __forceinline__ void read(const Ring& ring, int first_field, const Lanes& lanes) {
#pragma unroll
    for (int d = 0; d < 3; d++) {
      if constexpr (Grouped)
        ring.read_word(d, lanes.get(d), raw[d]);
      else
        ring.read(first_field + d, raw[d]);
    }
  }

  // |l| < 28 for all, by a bound on their squares that leaves room for the rounding of a sum of halves.
  __device__ __forceinline__ bool ordinary() const { return squares_below<T, kCount>(raw, 700.f); }

  __device__ __forceinline__ void get(int i, float (&l)[3]) const {
#pragma unroll
    for (int d = 0; d < 3; d++) l[d] = raw[d].get(i);
  }
};

}  // namespace gspn
