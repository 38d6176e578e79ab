// The gated merge in plain integers: shared by every backend and free of torch.
#pragma once

#include <cstdint>

namespace gspn {

// h and u are (pixels, directions, channels), y is (pixels, channels).
struct MergeShape {
  int64_t pixels, directions, channels;
};

constexpr int kMergeThreads = 256;

// Blocks of a launch whose threads take `vector` channels each.
inline int64_t merge_blocks(const MergeShape& s, int vector) {
  return (s.pixels * (s.channels / vector) + kMergeThreads - 1) / kMergeThreads;
}

}  // namespace gspn
