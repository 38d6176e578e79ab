// How a depthwise convolution is laid out over a GPU: a pure function from shape to launch, free of CUDA and of torch.
//
// A block takes some neighbouring channels, a tile's columns of them and some rows, of one image or of several, and
// rolls down the rows: each is copied to shared memory once, with its border. A thread takes one channel of kRun
// neighbouring columns.
#pragma once

#include <algorithm>
#include <cstdint>

#include "conv_shape.h"
#include "scan_plan.h"

namespace gspn {
namespace conv {

constexpr int kThreads = 128, kRun = 8;
constexpr int kElements = kThreads * kRun;  // of a row of a tile: channels times columns
constexpr int kPlaces = 6;                  // rows in shared memory: the one at hand, and those on their way
constexpr int kUsualLanes = 64;             // with these channels, moved by 16 bytes, addresses are known when compiled

// Blocks that a multiprocessor shall hold: so many registers does a thread need that nothing is spilled.
constexpr int resident_blocks(int size) { return size == 3 ? 6 : size == 5 ? 4 : 3; }

// What of a call decides its plan, besides the shape.
struct ConvPass {
  bool gradient;   // of the weights; else the convolution, or its transpose
  bool gated;      // what comes in is read times twice a second map
  bool keeps_relu; // a second map goes out
};

struct ConvPlan {
  int lanes = 0;   // channels of a block, a power of two; 0: no plan
  int access = 0;  // bytes that a thread moves at once
  int rows = 0;    // of a task
  int images = 0;  // of a task
  int shared_bytes = 0;
  int64_t strips = 0, tiles = 0, segments = 0, stacks = 0;  // tasks by channels, columns, rows and images

  int columns() const { return kElements / lanes; }
  int64_t parts() const { return tiles * segments * stacks; }  // partial sums of every weight's gradient
  int64_t blocks() const { return strips * parts(); }
  bool usual() const { return lanes == kUsualLanes && access == 16; }
};

constexpr int64_t quotient(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Elements of a row with its border, or of one without.
constexpr int row_elements(int lanes, int border) { return kElements + border * lanes; }

// Bytes of one place of the ring. A gradient's gate is that of the gradient that comes in, which has no border.
inline int place_bytes(int size, const ConvPass& pass, int element_bytes, int lanes) {
  const int with_border = row_elements(lanes, size - 1), gates = pass.gated ? 1 : 0;
  const int elements = pass.gradient ? with_border + (1 + gates) * kElements : (1 + gates) * with_border;
  return elements * element_bytes;
}

inline int conv_shared_bytes(int size, const ConvPass& pass, int element_bytes, int lanes) {
  const int ring = kPlaces * place_bytes(size, pass, element_bytes, lanes);
  if (pass.gradient) return std::max(ring, kThreads * (size * size + 1) * 4);
  const int rows_out = 2 * (pass.keeps_relu ? 2 : 1) * kElements;
  return ring + (rows_out + size * size * lanes) * element_bytes;
}

inline void complete_plan(const ConvShape& s, const ConvPass& pass, int element_bytes, ConvPlan& plan) {
  plan.strips = quotient(s.channels, plan.lanes);
  plan.tiles = quotient(s.width, plan.columns());
  plan.segments = quotient(s.height, plan.rows);
  plan.stacks = quotient(s.batch, plan.images);
  plan.shared_bytes = conv_shared_bytes(s.size, pass, element_bytes, plan.lanes);
}

// As many bytes as one access moves, if rows and addresses are aligned to it.
inline int widest_access(const ConvShape& s, int element_bytes, int64_t alignment) {
  int bytes = 16;
  while (s.channels * element_bytes % bytes != 0 || alignment % bytes != 0) bytes /= 2;
  return bytes;
}

// Modelled time in cycles of a multiprocessor; only ratios matter. Blocks run in waves. Those of a multiprocessor share
// its instructions and its part of memory's bandwidth, of which one block alone uses up half at the most.
inline double modelled_cycles(const ConvShape& s, const ConvPass& pass, int element_bytes, const DeviceLimits& device,
                              const ConvPlan& plan) {
  constexpr double bytes_per_cycle = 13, at_start = 2500;
  const double around_a_row = plan.usual() ? 100 : 160;  // as benchmarks/sass.py counts
  const int border = s.size - 1;
  const int by_shared = device.shared_per_block / (plan.shared_bytes + 1024);
  const int resident = std::max(1, std::min(resident_blocks(s.size), by_shared));
  const int conflicts = std::max(1, 32 / plan.lanes);  // where a warp reads several columns' channels at once
  const double instructions = kRun * s.size * s.size + 2.0 * conflicts * (kRun + border) + around_a_row;
  const int64_t columns = std::min<int64_t>(plan.columns(), s.width), read = std::min(columns + border, s.width);
  const int gates = pass.gated ? 1 : 0;
  const int64_t pixels = pass.gradient ? read + (1 + gates) * columns
                                       : (1 + gates) * read + (pass.keeps_relu ? 2 : 1) * columns;
  const int64_t piece = std::min<int64_t>(plan.lanes, s.channels) * element_bytes;
  // Of pieces narrower than a line of the cache some more is moved than is used; of those under two sectors far more.
  const bool torn = piece < 128 && piece < s.channels * element_bytes;
  const double waste = torn ? 1.1 * std::max(1.0, 64.0 / piece) : 1;
  const double row = std::max(instructions, waste * pixels * piece / bytes_per_cycle);
  const double rows = plan.rows + (plan.segments > 1 ? border : 0.1 * border);
  const double task = at_start + plan.images * rows * row;
  const int64_t wave = int64_t{resident} * device.multiprocessors;
  const int64_t full = plan.blocks() / wave, rest = plan.blocks() % wave;
  double time = full * resident * task;
  if (rest > 0) time += std::max<int64_t>(2, quotient(rest, device.multiprocessors)) * task;
  if (!pass.gradient) return time;
  const double sums = 8.0 * plan.parts() * s.channels * (s.size * s.size + 1);  // written, and read again
  return time + sums / bytes_per_cycle / device.multiprocessors + 100.0 * plan.parts() / 8;
}

// The fastest plan by the model; among near equals the first.
inline ConvPlan make_plan(const ConvShape& s, const ConvPass& pass, int element_bytes, int64_t alignment,
                          const DeviceLimits& device) {
  ConvPlan best;
  double least = 0;
  for (int lanes : {64, 32, 128, 16, 8})
    for (int64_t segments = 1; segments == 1 || segments * 2 * s.size <= s.height; segments *= 2)
      for (int64_t images = 1; images == 1 || images <= std::min<int64_t>(s.batch, 256); images *= 2) {
        ConvPlan plan;
        plan.lanes = lanes;
        plan.access = widest_access(s, element_bytes, alignment);
        plan.rows = static_cast<int>(quotient(s.height, segments));
        plan.images = static_cast<int>(images);
        complete_plan(s, pass, element_bytes, plan);
        if (plan.shared_bytes > device.shared_per_block) continue;
        const double time = modelled_cycles(s, pass, element_bytes, device, plan);
        if (best.lanes > 0 && time > 0.97 * least) continue;
        best = plan;
        least = time;
      }
  return best;
}

}  // namespace conv
}  // namespace gspn
