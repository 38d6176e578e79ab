// How a scan is laid out over a GPU: a pure function from shape to launch, free of CUDA and of torch.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "block_threads.h"
#include "scan_shape.h"

namespace gspn {

constexpr int kMaxThreads = 1024;

// What of a device decides a plan.
struct DeviceLimits {
  int multiprocessors;
  int shared_per_block;  // bytes, with the opt-in
};

struct ScanPlan {
  int vector = 0;  // channels in a thread; 0: no plan, the lines are too long
  int lanes = 0;   // threads side by side along the channels
  int rows = 0;    // threads along a line
  int run = 0;     // positions of a line in each thread
  int segments = 1;     // segments that a task walks over, one after the other
  bool tiled = false;   // a block does all directions at once and keeps their sum, dx or y, in shared memory
  int planes = 1;       // threads for the directions of a block
  int group_lanes = 1;  // backward: lanes whose logit gradients are summed by shuffles
  int parts = 1;        // backward: partial sums left for each logit's gradient
  int tile_offset = 0;    // floats of shared memory before that sum
  int ring_offset = 0;    // floats of shared memory before the ring
  int shared_bytes = 0;
  int64_t blocks = 0;

  BlockThreads block() const { return {lanes, rows, planes}; }
  int threads() const { return block().count(); }
  int warps() const { return (threads() + 31) / 32; }
  bool single() const { return run == 1; }
};

// The longest lines and the most of them over a scan's directions.
struct Extent {
  int64_t lines = 1, length = 1, segments = 1;

  explicit Extent(const ScanShape& s) {
    for (int64_t k = 0; k < s.directions; k++) {
      const LineWalk walk(s, s.codes[k]);
      lines = std::max(lines, walk.count);
      length = std::max(length, walk.length);
    }
    if (s.segment > 0) segments = (lines + s.segment - 1) / s.segment;
  }
};

inline bool grouped(const ScanShape& s) { return s.groups != s.channels; }

// Registers that a kernel may use: few enough for many warps, and so many that nothing is spilled
// (tests/ops/test_cuda_build.py).
constexpr int register_limit(bool backward, bool shares_groups, int access_bytes, int vector, bool reads_out) {
  if (vector == 1) return backward ? 80 : 64;
  if (backward) return 128;
  if (access_bytes < 16) return 64;
  return !shares_groups ? 80 : reads_out ? 72 : 64;
}

// Items of a thread in its ring (scan_ring.cuh): the one that is computed, and those whose inputs are in flight.
constexpr int kStages = 4, kInFlight = kStages - 1;

// What one element, or V of them, take in a ring: words are the smallest unit of shared memory's bookkeeping.
constexpr int slot_bytes(int access_bytes) { return std::max(access_bytes, 4); }

// Of h[t-1] a backward thread at one position copies its own; one with a run copies both neighbours for itself too.
constexpr int backward_copies_of_h(bool single) { return single ? 1 : 3; }

// Bytes of one item of one thread in its ring.
constexpr int item_bytes(bool backward, bool shares_groups, int element_bytes, int vector, bool single,
                         bool reads_out) {
  const int fields = (backward ? 3 + backward_copies_of_h(single) : 2) + reads_out + (shares_groups ? 0 : 3);
  return fields * slot_bytes(element_bytes * vector) + (shares_groups ? 3 * 4 : 0);
}

// The registers of a backward thread hold 8 channels only if they share their logits and stay at one position.
constexpr int widest_backward(bool shares_groups, bool single) { return shares_groups && single ? 8 : 4; }

// Channels in a thread: as many as one access of 16 bytes moves, if alignment, groups and registers allow.
inline bool vector_fits(const ScanShape& s, bool backward, bool single, int element_bytes, int64_t alignment,
                        int vector) {
  if (vector * element_bytes > 16 || s.channels % vector != 0) return false;
  if (grouped(s) && s.heads() % vector != 0) return false;
  // Groups' logits of 16 bits are copied by the aligned words that hold them, and all of the last word must be there.
  const int64_t logits = s.batch * s.pixels() * s.directions * 3 * s.groups;
  if (grouped(s) && element_bytes == 2 && vector > 1 && logits % 2 != 0) return false;
  if (backward && vector > widest_backward(grouped(s), single)) return false;
  return alignment % (vector * element_bytes) == 0;
}

// Lines of a task: whole segments.
inline int64_t task_lines(const ScanShape& s, const ScanPlan& plan) {
  const int64_t lines = Extent(s).lines;
  if (plan.tiled || s.segment == 0) return lines;
  return std::min(std::min(s.segment, lines) * plan.segments, lines);
}

// Whether one block can do all directions at once: of four on a map of even sides no two that run against each other
// ever meet at a pixel. Those that cross may, and take turns (scan_tile.cuh).
inline bool tiles(const ScanShape& s) {
  if (s.directions == 1) return true;
  int distinct = 0;
  for (int k = 0; k < s.directions; k++) distinct |= 1 << s.codes[k];
  return distinct == 15 && s.height % 2 == 0 && s.width % 2 == 0;
}

inline void complete_plan(const ScanShape& s, bool backward, int element_bytes, ScanPlan& plan) {
  const Extent extent(s);
  plan.rows = static_cast<int>((extent.length + plan.run - 1) / plan.run);
  if (plan.tiled) {
    plan.segments = static_cast<int>(extent.segments);
    plan.planes = static_cast<int>(s.directions);
    if (plan.planes > 1)  // warps that take their turn as one: whole ones for each direction
      while (plan.lanes * plan.rows % 32 != 0) plan.rows++;
  }
  const int64_t tasks = (extent.segments + plan.segments - 1) / plan.segments;
  const int64_t tiles = (s.batch * tasks * (s.channels / plan.vector) + plan.lanes - 1) / plan.lanes;
  plan.blocks = plan.tiled ? tiles : tiles * s.directions;
  // Forward the state of two lines; backward a run, and what leaves it at either end on two lines.
  const int64_t slots = !backward ? 2 : plan.single() ? 4 : 4 + plan.run;
  const int64_t rows = (backward ? 1 : plan.run) * plan.rows + 2;
  int64_t floats = slots * plan.vector * plan.lanes * rows * plan.planes;
  plan.tile_offset = static_cast<int>(floats);
  if (plan.tiled && s.directions > 1) floats += s.pixels() * plan.vector * plan.lanes;
  floats = (floats + 3) / 4 * 4;
  plan.ring_offset = static_cast<int>(floats);
  const int item = item_bytes(backward, grouped(s), element_bytes, plan.vector, plan.single(), s.reads_out);
  const int64_t ring = int64_t{plan.warps()} * 32 * kStages * item;
  plan.shared_bytes = static_cast<int>(std::min<int64_t>(floats * sizeof(float) + ring, INT32_MAX));
  const int64_t group_vectors = grouped(s) ? s.heads() / plan.vector : 1;
  while (plan.group_lanes * 2 <= std::min(plan.lanes, 32) && group_vectors % (plan.group_lanes * 2) == 0)
    plan.group_lanes *= 2;
  plan.parts = static_cast<int>(group_vectors / plan.group_lanes);
}

// Bytes that one channel of one position moves, x read from memory once and then from the cache.
inline double bytes_per_element(const ScanShape& s, bool backward, int element_bytes, bool tiled) {
  const double directions = static_cast<double>(s.directions);
  const double read = s.segment > 0 ? 1 - 1.0 / s.segment : 1;  // of the logits and of h: not where a pass starts anew
  const double logits = 3.0 * s.groups / s.channels * element_bytes;
  if (!backward) return ((s.reads_out ? 2 : 1) / directions + 2) * element_bytes + read * logits;
  const double scratch = tiled || s.directions == 1 ? 0 : 8;
  if (s.reads_out) return (3 / directions + 5) * element_bytes + (1 + read) * logits + scratch;
  return (2 / directions + 3 + read) * element_bytes + (1 + read) * logits + scratch;
}

// Modelled time in microseconds of the scan on an H200; only ratios matter. Resident blocks move in waves, and a wave
// takes for each line the longest of three times, smoothly: memory's, the instructions', and that of a single warp,
// which waits for one latency per items in flight. Before its lines a block has its start: instructions, and a latency.
inline double modelled_time(const ScanShape& s, bool backward, int element_bytes, const DeviceLimits& device,
                            const ScanPlan& plan) {
  constexpr double latency = 0.9, bytes_per_microsecond = 32e3, cycles_per_microsecond = 1755, barrier = 0.1;
  constexpr int schedulers = 4, registers = 16384;  // of a multiprocessor; of one scheduler
  const Extent extent(s);
  const int warps = (plan.threads() + 31) / 32;
  const int limit = register_limit(backward, grouped(s), element_bytes * plan.vector, plan.vector, s.reads_out);
  const int warps_by_registers = schedulers * (registers / (32 * limit));
  const int by_shared = device.shared_per_block / (plan.shared_bytes + 1024);
  const int per_processor = std::min({warps_by_registers / warps, by_shared, 32});
  if (per_processor == 0) return -1;

  double block_bytes = bytes_per_element(s, backward, element_bytes, plan.tiled);
  block_bytes *= plan.planes * plan.lanes * plan.vector * extent.length;
  const int piece = plan.lanes * plan.vector * element_bytes;
  if (piece < 32 && piece < s.channels * element_bytes) block_bytes *= 32.0 / piece;
  // As counted in the machine code (benchmarks/sass.py): forward 160 and 145, backward 398 and 384 for V = 4 and 8; a
  // read-out adds 47 to 50 and 75 to 81, several positions a thread 43 to 46 and 71 to 87.
  const double per_channel = (grouped(s) ? (backward ? 30 : 9) : (backward ? 65 : 26)) + (s.reads_out ? 7.5 : 0);
  const double instructions = (backward ? 135 : 56) + (grouped(s) ? (backward ? 20 : 15) : 0) +
                              (s.reads_out ? 22 : 0) + (plan.single() ? 0 : backward ? 75 : 45) +
                              per_channel * plan.vector;
  const double at_start = backward ? 500 : 300;
  const double waiting = latency / kInFlight;
  const double item = std::max(waiting, 2 * instructions / cycles_per_microsecond);
  const double alone = plan.run * item + barrier * (plan.planes > 1 ? 2 : 1);
  const double alone_at_start = latency + 2 * at_start / cycles_per_microsecond;
  const auto wave = [&](int64_t blocks) {
    const double share = static_cast<double>(blocks) / device.multiprocessors;
    const double memory = share * block_bytes / bytes_per_microsecond;
    const double items = std::ceil(share) * warps * plan.run;
    const double issue = items * instructions / (schedulers * cycles_per_microsecond);
    return std::cbrt(memory * memory * memory + issue * issue * issue + alone * alone * alone);
  };
  const int64_t slots = int64_t{per_processor} * device.multiprocessors;
  const int64_t full = plan.blocks / slots, rest = plan.blocks % slots;
  const auto start = [&](int64_t blocks) {
    const double warps_there = std::ceil(static_cast<double>(blocks) / device.multiprocessors) * warps;
    return std::max(alone_at_start, warps_there * at_start / (schedulers * cycles_per_microsecond));
  };
  const double lines = static_cast<double>(task_lines(s, plan));
  const auto together = [&](int64_t blocks) { return lines * wave(blocks) + start(blocks); };
  return full * together(slots) + (rest > 0 ? together(rest) : 0);
}

// The fastest plan by the model. Among near equals the first: wide accesses, few positions in a thread, wide pieces
// of memory.
inline ScanPlan make_plan(const ScanShape& s, bool backward, int element_bytes, int64_t alignment,
                          const DeviceLimits& device) {
  ScanPlan best;
  double best_time = 0;
  const Extent extent(s);
  const int64_t length = extent.length;
  const auto consider = [&](int vector, int lanes, int64_t run, bool tiled, int64_t segments) {
    if (s.reads_out && (run > 1 || vector == 1 || (!backward && !tiled))) return;
    if (tiled && (run > 1 || !tiles(s))) return;
    if (run > length || !vector_fits(s, backward, run == 1, element_bytes, alignment, vector)) return;
    ScanPlan plan;
    plan.vector = vector;
    plan.lanes = lanes;
    plan.run = static_cast<int>(run);
    plan.tiled = tiled;
    plan.segments = static_cast<int>(segments);
    complete_plan(s, backward, element_bytes, plan);
    if (plan.threads() > kMaxThreads || plan.shared_bytes > device.shared_per_block) return;
    // Of a block that has a multiprocessor to itself all warps wait at the same barrier.
    const double reluctance = plan.threads() > kMaxThreads / 2 ? 1.05 : 1;
    const double time = reluctance * modelled_time(s, backward, element_bytes, device, plan);
    const double gain = vector < best.vector ? 0.9 : 0.97;
    if (time < 0 || (best.vector > 0 && time > gain * best_time)) return;
    best = plan;
    best_time = time;
  };
  for (int vector : {8, 4, 1}) {
    if (vector == 1 && best.vector > 0) break;
    for (int stretch = 1; stretch <= (best.vector > 0 ? 4 : 64); stretch++)
      for (int lanes = 32; lanes >= 1; lanes /= 2) {
        const int64_t shortest = std::max<int64_t>(1, (length * lanes + kMaxThreads - 1) / kMaxThreads);
        // Long tasks first: what their start costs is shared by more lines.
        for (int64_t parts = 1; parts == 1 || parts <= extent.segments; parts *= 2)
          consider(vector, lanes, stretch * shortest, false, (extent.segments + parts - 1) / parts);
        if (s.reads_out || (backward && s.directions > 1)) consider(vector, lanes, stretch * shortest, true, extent.segments);
      }
  }
  return best;
}

// Whether one kernel for scan and read-out is expected to be done before the scan and the merge after it. There is none
// but for row-stochastic weights, and forward none for maps whose sum over the directions no block can hold.
inline bool reads_out_well(const ScanShape& s, bool backward, int element_bytes, int64_t alignment,
                           const DeviceLimits& device, const ScanPlan& plan) {
  if (s.normalization != kRowStochastic || plan.vector == 0) return false;
  constexpr double bytes_per_microsecond = 32e3;  // of one multiprocessor
  ScanShape apart = s;
  apart.reads_out = false;
  const ScanPlan alone = make_plan(apart, backward, element_bytes, alignment, device);
  if (alone.vector == 0) return true;
  const double maps = static_cast<double>(s.batch * s.pixels() * s.channels) * element_bytes;
  const double merge = maps * ((backward ? 4 : 2) * s.directions + 1) / device.multiprocessors / bytes_per_microsecond;
  return modelled_time(s, backward, element_bytes, device, plan) <=
         modelled_time(apart, backward, element_bytes, device, alone) + merge;
}

// Whether each direction writes a part of dx to scratch, summed afterwards.
inline bool needs_dx_parts(const ScanShape& s, const ScanPlan& plan) { return s.directions > 1 && !plan.tiled; }

}  // namespace gspn
