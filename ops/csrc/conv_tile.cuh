// What the kernels of the depthwise convolution share: where a block works, the order of its rows, and a thread's part
// in moving them between memory and shared memory.
#pragma once

#include "conv_plan.h"
#include "cuda_primitives.cuh"

namespace gspn {
namespace conv {

template <int Number>
struct Constant {
  static constexpr int value = Number;
};

// A block's channels, columns, rows and images.
struct Task {
  int channel, column, begin, end;  // the first channel and column; rows
  int64_t image, last_image, part;

  __device__ __forceinline__ Task(const ConvShape& s, const ConvPlan& p) {
    int64_t rest = blockIdx.x;
    channel = static_cast<int>(rest % p.strips) * p.lanes;
    part = rest /= p.strips;
    column = static_cast<int>(rest % p.tiles) * (kElements / p.lanes);
    rest /= p.tiles;
    begin = static_cast<int>(rest % p.segments) * p.rows;
    end = static_cast<int>(min(int64_t{begin} + p.rows, s.height));
    image = rest / p.segments * p.images;
    last_image = min(image + p.images, s.batch);
  }
};

// The rows that a block takes in, one after the other, image by image: its own, and on either side as many as the
// kernel's border. Those before the map's first are left out; those past its last are there, and hold nothing.
struct Walk {
  int images, row, first, last;  // images: still to do
  int64_t place, pitch, jump;    // where the row begins for this thread; to the next row; past an image's other rows

  __device__ __forceinline__ Walk(const ConvShape& s, const Task& task, int pad, int64_t channel)
      : images(static_cast<int>(task.last_image - task.image)),
        first(max(task.begin - pad, 0)),
        last(task.end + pad),
        pitch(s.width * s.channels) {
    row = first;
    place = (task.image * s.height + first) * pitch + task.column * s.channels + channel;
    jump = (s.height - (last - first)) * pitch;
  }

  __device__ __forceinline__ void advance() {
    place += pitch;
    row++;
#pragma unroll 1
    for (; row == last; row = first) {  // a loop, so that the compiler leaves it a branch: it is taken once an image
      place += jump;
      images--;
    }
  }
};

// A row in shared memory is (columns, channels of the block); this is a thread's part in moving it: always the same
// channels, of every so many-th column.
template <typename T, bool Usual>
struct Mover {
  int lanes, access, column, step, stride;  // stride: bytes from pixel to pixel
  unsigned width;                           // of the map; 0 where these channels do not exist
  int64_t channel;
  Shared within;  // where the first column lies in a row in shared memory

  __device__ __forceinline__ Mover(const ConvShape& s, const ConvPlan& p, const Task& task)
      : lanes(Usual ? kUsualLanes : p.lanes),
        access(Usual ? 16 : p.access),
        stride(static_cast<int>(s.channels * static_cast<int>(sizeof(T)))) {
    const int wide = access / static_cast<int>(sizeof(T)), in_a_pixel = lanes / wide, thread = threadIdx.x;
    const int element = thread % in_a_pixel * wide;
    column = thread / in_a_pixel;
    step = kThreads / in_a_pixel;
    channel = int64_t{task.channel} + element;
    width = channel < s.channels ? static_cast<unsigned>(s.width) : 0;
    within = (column * lanes + element) * sizeof(T);
  }

  // Calls move(bytes, column, its place in shared memory, whether to move it) for this thread's of the tile's columns.
  template <int Border, typename Move>
  __device__ __forceinline__ void each_column(Shared row, const Move& move) const {
    constexpr int size = sizeof(T);
    row += within;
    if constexpr (Usual) {
      constexpr int columns = kElements / kUsualLanes + Border, every = kThreads * 16 / (kUsualLanes * size);
#pragma unroll
      for (int i = 0; i < columns; i += every)
        move(Constant<16>(), column + i, row + i * (kUsualLanes * size), i + every <= columns || column + i < columns);
    } else {
      const int columns = kElements / lanes + Border;
      const auto with = [&](auto bytes) {
#pragma unroll 1
        for (int i = column; i < columns; i += step) move(bytes, i, row + (i - column) * lanes * size, true);
      };
      if (access == 16) return with(Constant<16>());
      if (access == 8) return with(Constant<8>());
      if constexpr (size == 2)
        if (access == 2) return with(Constant<2>());
      with(Constant<4>());
    }
  }

  // Starts copying a row from column `left` of the map on, where `from` points; zeros where there is nothing.
  template <int Border>
  __device__ __forceinline__ void copy(Shared to, const T* from, int left) const {
    each_column<Border>(to, [&](auto bytes, int i, Shared at, bool wanted) {
      const bool exists = static_cast<unsigned>(left + i) < width;
      start_copy<decltype(bytes)::value>(at, at_pixel(from, i, stride), exists, wanted);
    });
  }

  __device__ __forceinline__ void store(Shared from, T* to, int left) const {
    each_column<0>(from, [&](auto bytes, int i, Shared at, bool) {
      constexpr int wide = decltype(bytes)::value / sizeof(T);
      if (static_cast<unsigned>(left + i) >= width) return;
      Packed<T, wide> packed;
      read_copy<T, wide>(packed, at);
      store_packed<T, wide>(at_pixel(to, i, stride), packed);
    });
  }
};

// The places of the ring, one after the other.
struct Places {
  Shared at, before, begin, last;  // the one at hand and the one that was
  int bytes;

  __device__ __forceinline__ Places(Shared ring, int place_bytes) : at(ring), begin(ring), bytes(place_bytes) {
    before = last = ring + (kPlaces - 1) * place_bytes;
  }

  __device__ __forceinline__ void advance() {
    before = at;
    at = at == last ? begin : at + bytes;
  }
};

template <typename T>
__device__ __forceinline__ float read_element(Shared from) {
  Packed<T, 1> packed;
  read_copy<T, 1>(packed, from);
  return packed.get(0);
}

template <typename T>
__device__ __forceinline__ void write_element(Shared to, float value) {
  Packed<T, 1> packed;
  packed.set(0, value);
  write_copy<T, 1>(to, packed);
}

// Neighbouring columns of a thread's channel.
template <typename T, int Count>
__device__ __forceinline__ void read_columns(Shared from, int stride, float (&values)[Count]) {
#pragma unroll
  for (int i = 0; i < Count; i++) values[i] = read_element<T>(from + i * stride);
}

// Times twice those of the gate.
template <typename T, int Count>
__device__ __forceinline__ void gate_columns(Shared gate, int stride, float (&values)[Count]) {
#pragma unroll
  for (int i = 0; i < Count; i++) values[i] *= 2.f * read_element<T>(gate + i * stride);
}

}  // namespace conv
}  // namespace gspn
