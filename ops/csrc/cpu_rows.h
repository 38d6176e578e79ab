// Rows of channels: working memory, offsets into the tensors, loops over vectors.
#pragma once

#include <cstdlib>

#include "cpu_normalize.h"
#include "scan_cpu_kernel.h"

namespace gspn {
namespace {

// Rows of working memory padded to whole vectors, so that only tensors have ragged ends.
template <typename T>
struct Rows {
  int64_t stride, size;
  T* data;
  Rows(int64_t count, int64_t width)
      : stride((width + kLanes<T> - 1) / kLanes<T> * kLanes<T>), size(count * stride) {
    data = static_cast<T*>(std::aligned_alloc(64, (size * sizeof(T) / 64 + 1) * 64));
    if (!data) std::abort();  // out of memory for a few lines: nothing sensible is left to do
    clear();
  }
  Rows(const Rows&) = delete;
  ~Rows() { std::free(data); }
  T* operator[](int64_t i) { return data + i * stride; }
  void clear() { std::memset(data, 0, size * sizeof(T)); }
  void clear(int64_t first, int64_t count) { std::memset((*this)[first], 0, count * stride * sizeof(T)); }
  void swap(Rows& other) {
    T* mine = data;
    data = other.data;
    other.data = mine;
  }
};

// The states of the last line and of the next in the space of little more than one: position n of the next line takes
// the place of position n - 1 of the last, which nothing after n reads. So lines move down by a row each, and up again
// where the space ends. Positions -1 and `length` of the last line are zeros.
template <typename T>
class Lines {
 public:
  Lines(int64_t length, int64_t width) : rows_(2 * length + 5, width), length_(length), first_(length + 3) {}
  // Call before each line: what was the next one becomes the last.
  void advance() {
    if (first_ == 1) {
      std::memcpy(rows_[length_ + 3], rows_[1], length_ * rows_.stride * sizeof(T));
      first_ = length_ + 3;
    }
    rows_.clear(first_ - 1, 1);
    rows_.clear(first_ + length_, 1);
    first_--;
  }
  T* last(int64_t n) { return rows_[first_ + 1 + n]; }
  T* next(int64_t n) { return rows_[first_ + n]; }

 private:
  Rows<T> rows_;
  int64_t length_, first_;
};

template <typename T>
GSPN_INLINE void expand_groups(const T* of_group, int64_t groups, int64_t heads, T* of_channel) {
  for (int64_t g = 0; g < groups; g++)
    for (int64_t j = 0; j < heads; j++) of_channel[g * heads + j] = of_group[g];
}

template <typename T>
GSPN_INLINE T sum_lanes(const Vector<T>& v) {
  T sum = 0;
  for (int i = 0; i < kLanes<T>; i++) sum += v[i];
  return sum;
}

template <typename T>
GSPN_INLINE void sum_heads(const T* of_channel, int64_t groups, int64_t heads, T* of_group) {
  constexpr int lanes = kLanes<T>;
  for (int64_t g = 0; g < groups; g++, of_channel += heads) {
    Vector<T> partial = {};
    int64_t j = 0;
    for (; j + lanes <= heads; j += lanes) partial += load(of_channel + j, lanes);
    T sum = sum_lanes<T>(partial);
    for (; j < heads; j++) sum += of_channel[j];
    of_group[g] = sum;
  }
}

// Where one direction of one slice finds its elements; offsets in elements, positions in pixels.
struct Strides {
  int64_t channels, groups, first_channel;
  int64_t x_pixel, lam_pixel, logits_pixel, logits_d;
  int64_t x_start, lam_start, logits_start;
  Strides(const ScanShape& s, const Slice& slice, int64_t k) {
    groups = slice.group_count;
    channels = groups * s.heads();
    first_channel = slice.first_group * s.heads();
    x_pixel = s.channels;
    lam_pixel = s.directions * s.channels;
    logits_pixel = s.directions * 3 * s.groups;
    logits_d = s.groups;
    x_start = slice.image * s.pixels() * x_pixel + first_channel;
    lam_start = slice.image * s.pixels() * lam_pixel + k * s.channels + first_channel;
    logits_start = slice.image * s.pixels() * logits_pixel + k * 3 * s.groups + slice.first_group;
  }
};

// Calls body(c, count) for whole vectors and once for the ragged end; `count` is a constant for the former.
template <typename T, typename Body>
GSPN_INLINE void for_vectors(int64_t width, const Body& body) {
  constexpr int lanes = kLanes<T>;
  int64_t c = 0;
  for (; c + lanes <= width; c += lanes) body(c, static_cast<int64_t>(lanes));
  if (c < width) body(c, width - c);
}

template <bool WithSlope, typename S, typename T = Compute<S>>
GSPN_INLINE void load_weights(const S* logits, int64_t stride, int64_t count, int normalization, Neighbours exists,
                              Weights<Vector<T>>& out) {
  Vector<T> l[3];
  for (int d = 0; d < 3; d++) l[d] = load(logits + d * stride, count);
  normalize<WithSlope>(normalization, l, exists, out);
}

// The next position's row, asked for while this one is computed: columns lie a row of the map apart, a stride that
// no hardware prefetcher follows.
template <typename S>
GSPN_INLINE void prefetch(const S* row, int64_t c) {
  __builtin_prefetch(row + c, 0, 2);
}
template <typename S>
GSPN_INLINE void prefetch_write(S* row, int64_t c) {
  __builtin_prefetch(row + c, 1, 2);
}

// An output's vector: past the caches if the shape says so, else into the line that was asked for in time.
template <typename S>
GSPN_INLINE void write(const Vector<Compute<S>>& v, S* row, S* next_row, int64_t c, int64_t count, bool past_caches) {
  if (past_caches && count == kLanes<Compute<S>>) return stream(v, row + c);
  prefetch_write(next_row, c);
  store(v, row + c, count);
}

}  // namespace
}  // namespace gspn
