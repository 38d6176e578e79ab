// How a scan is laid out over a GPU: a pure function from shape to launch, free of CUDA and of torch.
#pragma once

#include <algorithm>
#include <cstdint>

#include "scan_shape.h"

namespace gspn {

constexpr int kMaxThreads = 512;

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
  bool tiled = false;   // backward: a block does all directions and keeps dx in shared memory
  int group_lanes = 1;  // backward: lanes whose logit gradients are summed by shuffles
  int parts = 1;        // backward: partial sums left for each logit's gradient
  int shared_bytes = 0;
  int64_t blocks = 0;

  int threads() const { return lanes * rows; }
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

// Threads that a multiprocessor's 65,536 registers hold, by the compiler's report (tests/ops/test_cuda_build.py).
inline int resident_threads(bool backward, bool shares_groups, int vector) {
  if (vector == 8) return 512;
  if (backward) return shares_groups ? 768 : 512;
  return 1024;
}

// Channels in a thread: as many as one access of 16 bytes moves, if alignment and groups allow. A backward thread with
// its own logits for each channel has registers for 4.
inline bool vector_fits(const ScanShape& s, bool backward, int element_bytes, int64_t alignment, int vector) {
  if (vector * element_bytes > 16 || s.channels % vector != 0) return false;
  if (grouped(s) && s.heads() % vector != 0) return false;
  if (backward && !grouped(s) && vector > 4) return false;
  return alignment % (vector * element_bytes) == 0;
}

inline void complete_plan(const ScanShape& s, bool backward, ScanPlan& plan) {
  const Extent extent(s);
  plan.rows = static_cast<int>((extent.length + plan.run - 1) / plan.run);
  const int64_t segments = plan.tiled ? 1 : extent.segments;
  const int64_t tiles = (s.batch * segments * (s.channels / plan.vector) + plan.lanes - 1) / plan.lanes;
  plan.blocks = plan.tiled ? tiles : tiles * s.directions;
  const int edges = backward || !plan.single() ? 4 : 2;
  const int64_t slots = edges + (plan.single() ? 0 : plan.run);
  int64_t floats = slots * plan.vector * plan.threads();
  if (plan.tiled && s.directions > 1) floats += s.pixels() * plan.vector * plan.lanes;
  plan.shared_bytes = static_cast<int>(std::min<int64_t>(floats * sizeof(float), INT32_MAX));
  const int64_t group_vectors = grouped(s) ? s.heads() / plan.vector : 1;
  while (plan.group_lanes * 2 <= std::min(plan.lanes, 32) && group_vectors % (plan.group_lanes * 2) == 0)
    plan.group_lanes *= 2;
  plan.parts = static_cast<int>(group_vectors / plan.group_lanes);
}

// Modelled time in microseconds: a wave of resident blocks moves its lines at the bandwidth of memory, or, when too
// little is in flight, at one latency for each item that a thread prefetches. Only ratios matter.
inline double modelled_time(const ScanShape& s, bool backward, int element_bytes, const DeviceLimits& device,
                            const ScanPlan& plan) {
  constexpr double latency = 0.9, bytes_per_microsecond = 32e3;  // of one multiprocessor's share
  const Extent extent(s);
  const int threads = (plan.threads() + 31) / 32 * 32;
  const int by_registers = resident_threads(backward, grouped(s), plan.vector) / threads;
  const int by_shared = device.shared_per_block / std::max(plan.shared_bytes + 1024, 1);
  const int per_processor = std::min({by_registers, by_shared, 32});
  if (per_processor == 0) return -1;

  const double logits = 3.0 * s.groups / s.channels * element_bytes;
  double bytes = 2.25 * element_bytes + logits + element_bytes;  // of one channel of one position
  if (backward) bytes += 2 * element_bytes + logits + (plan.tiled || s.directions == 1 ? 0 : 8);
  const int piece = plan.lanes * plan.vector * element_bytes;
  if (piece < 32 && piece < s.channels * element_bytes) bytes *= 32.0 / piece;
  const double block_bytes = bytes * plan.lanes * plan.vector * extent.length;
  const int depth = grouped(s) && !backward ? 2 : 1;
  const double waiting = latency * ((plan.run + depth - 1) / depth) * (1 + 0.25 / per_processor);
  const int64_t slots = int64_t{per_processor} * device.multiprocessors;
  const auto wave = [&](int64_t blocks) {
    return std::max(waiting, blocks * block_bytes / (bytes_per_microsecond * device.multiprocessors));
  };
  const int64_t full = plan.blocks / slots, rest = plan.blocks % slots;
  const double period = plan.tiled ? double(extent.lines * s.directions)
                                   : double(s.segment > 0 ? std::min(s.segment, extent.lines) : extent.lines);
  return period * (full * wave(slots) + (rest > 0 ? wave(rest) : 0));
}

// The fastest plan by the model; among near equals the one with the widest pieces of memory.
inline ScanPlan make_plan(const ScanShape& s, bool backward, int element_bytes, int64_t alignment,
                          const DeviceLimits& device) {
  ScanPlan best;
  double best_time = 0;
  const int64_t length = Extent(s).length;
  for (int vector : {8, 4, 1}) {
    if (!vector_fits(s, backward, element_bytes, alignment, vector)) continue;
    for (int lanes = 32; lanes >= 1; lanes /= 2) {
      const int64_t shortest = std::max<int64_t>(1, (length * lanes + kMaxThreads - 1) / kMaxThreads);
      for (int64_t run : {shortest, 2 * shortest, 4 * shortest}) {
        for (bool tiled : {false, true}) {
          if (run > length || (tiled && (!backward || s.directions == 1))) continue;
          ScanPlan plan;
          plan.vector = vector;
          plan.lanes = lanes;
          plan.run = static_cast<int>(run);
          plan.tiled = tiled;
          complete_plan(s, backward, plan);
          if (plan.threads() > kMaxThreads || plan.shared_bytes > device.shared_per_block) continue;
          const double time = modelled_time(s, backward, element_bytes, device, plan);
          if (time < 0 || (best.vector > 0 && time > 0.98 * best_time)) continue;
          best = plan;
          best_time = time;
        }
      }
    }
    if (best.vector > 0) return best;
  }
  return best;
}

}  // namespace gspn
