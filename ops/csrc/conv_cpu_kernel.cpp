// The depthwise convolution for one instruction set. A tile of the map, a vector of channels wide, is copied with its
// border of zeros to a buffer that the first cache holds; what is computed from there needs no bounds. Compiled as
// scan_cpu_kernel.cpp is, and as self-contained for the same reason.
#include "conv_cpu_kernel.h"

#include "cpu_rows.h"

namespace gspn {
namespace conv {
namespace {

constexpr int64_t kTile = 16;                     // rows and columns of a tile
constexpr int kAtOnce = kVectorBytes == 64 ? 8 : 4;  // neighbouring columns in registers

template <typename S>
using Lanes = Vector<Compute<S>>;

// A block of channels of one image.
template <typename S>
struct Block {
  static constexpr int kWide = kLanes<Compute<S>>;
  int64_t first, count, start;  // channels, and where the block's first pixel lies

  Block(const ConvShape& s, int64_t image, int64_t block)
      : first(block * kWide),
        count(s.channels - first < kWide ? s.channels - first : kWide),
        start(image * s.height * s.width * s.channels + first) {}
};

struct Window {
  int64_t top, left, rows, columns;
};

// Copies rows and columns of the map from (top, left) on, zeros where there is no map. `positive` as in ForwardTensors.
template <typename S>
GSPN_INLINE void stage(const ConvShape& s, const Block<S>& block, const S* from, const S* positive, const Window& window,
                       Compute<S>* to) {
  for (int64_t r = 0; r < window.rows; r++)
    for (int64_t c = 0; c < window.columns; c++, to += Block<S>::kWide) {
      const int64_t y = window.top + r, x = window.left + c;
      Lanes<S> value = {};
      if (y >= 0 && y < s.height && x >= 0 && x < s.width) {
        const int64_t at = block.start + (y * s.width + x) * s.channels;
        value = load(from + at, block.count);
        prefetch(from + at, Block<S>::kWide);  // the next block's, which comes next: pixels lie too far apart for hardware
        if (positive) value *= 2 * load(positive + at, block.count);
      }
      store(value, to, Block<S>::kWide);
    }
}

template <typename S, int Size>
void forward_of(const ConvShape& s, const ForwardTensors& tensors, int64_t image, int64_t number) {
  using T = Compute<S>;
  constexpr int wide = Block<S>::kWide, pad = Size / 2;
  const Block<S> block(s, image, number);
  const T* weights = static_cast<const T*>(tensors.weights) + number * Size * Size * wide;
  S *y = static_cast<S*>(tensors.y), *relu = static_cast<S*>(tensors.relu);
  Lanes<S> bias = {};
  if (tensors.bias) bias = load(static_cast<const S*>(tensors.bias) + block.first, block.count);
  alignas(64) T buffer[(kTile + Size - 1) * (kTile + Size - 1) * wide];
  for (int64_t top = 0; top < s.height; top += kTile)
    for (int64_t left = 0; left < s.width; left += kTile) {
      const int64_t rows = s.height - top < kTile ? s.height - top : kTile;
      const int64_t columns = s.width - left < kTile ? s.width - left : kTile;
      const int64_t staged = (columns + kAtOnce - 1) / kAtOnce * kAtOnce + Size - 1;
      stage(s, block, static_cast<const S*>(tensors.x), static_cast<const S*>(tensors.positive),
            {top - pad, left - pad, rows + Size - 1, staged}, buffer);
      for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < columns; c += kAtOnce) {
          Lanes<S> sum[kAtOnce];
#pragma GCC unroll 8
          for (int i = 0; i < kAtOnce; i++) sum[i] = bias;
#pragma GCC unroll 1
          for (int row = 0; row < Size; row++) {
            const T* in = buffer + ((r + row) * staged + c) * wide;
            Lanes<S> w[Size];
#pragma GCC unroll 8
            for (int j = 0; j < Size; j++) w[j] = load(weights + (row * Size + j) * wide, wide);
#pragma GCC unroll 16
            for (int j = 0; j < kAtOnce + Size - 1; j++) {
              const Lanes<S> value = load(in + j * wide, wide);
#pragma GCC unroll 8
              for (int tap = 0; tap < Size; tap++)
                if (j - tap >= 0 && j - tap < kAtOnce) sum[j - tap] += value * w[tap];
            }
          }
#pragma GCC unroll 8
          for (int i = 0; i < kAtOnce; i++) {
            if (c + i >= columns) break;
            const int64_t at = block.start + ((top + r) * s.width + left + c + i) * s.channels;
            prefetch_write(y + at, Block<S>::kWide);
            if (tensors.square) {
              const Lanes<S> rest = maximum(Lanes<S>{}, sum[i]);  // in this order NaN stays
              if (relu) store(rest, relu + at, block.count);
              sum[i] = rest * rest;
            }
            store(sum[i], y + at, block.count);
          }
        }
    }
}

template <typename S, int Size>
void gradient_of(const ConvShape& s, const GradientTensors& tensors, int64_t image, int64_t number) {
  using T = Compute<S>;
  constexpr int wide = Block<S>::kWide, pad = Size / 2;
  const Block<S> block(s, image, number);
  const int64_t blocks = (s.channels + wide - 1) / wide;
  T* parts = static_cast<T*>(tensors.parts) + (image * blocks + number) * (Size * Size + 1) * wide;
  alignas(64) T buffer[(kTile + Size - 1) * (kTile + Size - 1) * wide], grads[kTile * kTile * wide];
  Lanes<S> of_bias = {}, total[Size][Size] = {};
  for (int64_t top = 0; top < s.height; top += kTile)
    for (int64_t left = 0; left < s.width; left += kTile) {
      const int64_t rows = s.height - top < kTile ? s.height - top : kTile;
      const int64_t columns = s.width - left < kTile ? s.width - left : kTile;
      const int64_t whole = (columns + kAtOnce - 1) / kAtOnce * kAtOnce, staged = whole + Size - 1;
      stage(s, block, static_cast<const S*>(tensors.x), static_cast<const S*>(nullptr),
            {top - pad, left - pad, rows + Size - 1, staged}, buffer);
      stage(s, block, static_cast<const S*>(tensors.grad_y), static_cast<const S*>(tensors.positive),
            {top, left, rows, whole}, grads);
      // Beyond the map's last column there are zeros; beyond the tile's last there are none.
      for (int64_t i = 0; i < rows * whole; i++) of_bias += load(grads + i * wide, wide);
#pragma GCC unroll 1
      for (int row = 0; row < Size; row++) {
        Lanes<S> sum[Size];
#pragma GCC unroll 8
        for (int tap = 0; tap < Size; tap++) sum[tap] = Lanes<S>{};
        for (int64_t r = 0; r < rows; r++)
          for (int64_t c = 0; c < whole; c += kAtOnce) {
            const T *in = buffer + ((r + row) * staged + c) * wide, *of_y = grads + (r * whole + c) * wide;
            Lanes<S> g[kAtOnce];
#pragma GCC unroll 8
            for (int i = 0; i < kAtOnce; i++) g[i] = load(of_y + i * wide, wide);
#pragma GCC unroll 16
            for (int j = 0; j < kAtOnce + Size - 1; j++) {
              const Lanes<S> value = load(in + j * wide, wide);
#pragma GCC unroll 8
              for (int tap = 0; tap < Size; tap++)
                if (j - tap >= 0 && j - tap < kAtOnce) sum[tap] += value * g[j - tap];
            }
          }
#pragma GCC unroll 8
        for (int tap = 0; tap < Size; tap++) total[row][tap] += sum[tap];
      }
    }
  for (int row = 0; row < Size; row++)
    for (int tap = 0; tap < Size; tap++) store(total[row][tap], parts + (row * Size + tap) * wide, wide);
  store(of_bias, parts + Size * Size * wide, wide);
}

template <typename S>
void forward(const ConvShape& s, const ForwardTensors& tensors, int64_t image, int64_t block) {
  const auto run = s.size == 3 ? forward_of<S, 3> : s.size == 5 ? forward_of<S, 5> : forward_of<S, 7>;
  run(s, tensors, image, block);
}

template <typename S>
void gradient(const ConvShape& s, const GradientTensors& tensors, int64_t image, int64_t block) {
  const auto run = s.size == 3 ? gradient_of<S, 3> : s.size == 5 ? gradient_of<S, 5> : gradient_of<S, 7>;
  run(s, tensors, image, block);
}

template <typename S>
void pack(const ConvShape& s, const void* weights, bool turned, void* packed, int64_t number) {
  using T = Compute<S>;
  constexpr int wide = Block<S>::kWide;
  const Block<S> block(s, 0, number);
  const int taps = s.size * s.size;
  const S* from = static_cast<const S*>(weights) + block.first * taps;
  T* to = static_cast<T*>(packed) + number * taps * wide;
  for (int tap = 0; tap < taps; tap++)
    for (int i = 0; i < wide; i++)
      to[tap * wide + i] = i < block.count ? load(from + i * taps + (turned ? taps - 1 - tap : tap), 1)[0] : 0;
}

template <typename S>
void add_parts(const ConvShape& s, const void* parts, void* of_weights, void* of_bias, int64_t number) {
  using T = Compute<S>;
  constexpr int wide = Block<S>::kWide;
  const Block<S> block(s, 0, number);
  const int taps = s.size * s.size;
  const int64_t blocks = (s.channels + wide - 1) / wide;
  for (int tap = 0; tap <= taps; tap++) {
    Lanes<S> sum = {};
    for (int64_t image = 0; image < s.batch; image++)
      sum += load(static_cast<const T*>(parts) + ((image * blocks + number) * (taps + 1) + tap) * wide, wide);
    S rounded[wide];
    store(sum, rounded, wide);
    if (tap < taps)
      for (int64_t i = 0; i < block.count; i++) static_cast<S*>(of_weights)[(block.first + i) * taps + tap] = rounded[i];
    else if (of_bias)
      for (int64_t i = 0; i < block.count; i++) static_cast<S*>(of_bias)[block.first + i] = rounded[i];
  }
}

}  // namespace

#define GSPN_EACH(function) {function<float>, function<BFloat16>, function<Float16>, function<double>}

const Kernels GSPN_KERNELS = {
    GSPN_KERNELS_NAME,    {kLanes<float>, kLanes<float>, kLanes<float>, kLanes<double>},
    GSPN_EACH(pack),      GSPN_EACH(forward),
    GSPN_EACH(gradient),  GSPN_EACH(add_parts),
};

}  // namespace conv
}  // namespace gspn
