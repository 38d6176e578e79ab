// What a scan is asked to do, in plain integers: shared by every backend and free of torch.
#pragma once

#include <cstdint>

namespace gspn {

enum Direction : int { kRight = 0, kLeft = 1, kDown = 2, kUp = 3 };
enum Normalization : int { kRowStochastic = 0, kSigmoid = 1, kNone = 2 };

struct ScanShape {
  int64_t batch, height, width, directions, channels, groups;
  int64_t segment;  // lines after which a pass starts anew; 0: never
  int normalization;
  int codes[4];  // the Direction of each k
  // CPU: the outputs are larger than the caches and made of whole, aligned cache lines.
  bool past_caches = false;
  // CUDA: the states are read out by gates u on the spot, to y; backward, dh comes of grad_y and u.
  bool reads_out = false;

  int64_t pixels() const { return height * width; }
  int64_t heads() const { return channels / groups; }  // channels that share one group's logits
};

// How direction `code` walks a map: `count` lines of `length` positions, strides in pixels, in scan order.
struct LineWalk {
  int64_t count, length, start, line_stride, position_stride;

  LineWalk(const ScanShape& s, int code) {
    const bool columns = code == kRight || code == kLeft;
    count = columns ? s.width : s.height;
    length = columns ? s.height : s.width;
    line_stride = columns ? 1 : s.width;
    position_stride = columns ? s.width : 1;
    const bool reversed = code == kLeft || code == kUp;
    start = reversed ? (count - 1) * line_stride : 0;
    if (reversed) line_stride = -line_stride;
  }

  int64_t pixel(int64_t t, int64_t n) const { return start + t * line_stride + n * position_stride; }

  // The pixel that a forward (backward) pass meets `steps` positions after (t, n): what to prefetch. At the end of the
  // last line there is none, and it is (t, n) itself.
  int64_t ahead(int64_t t, int64_t n, int64_t steps) const {
    n += steps;
    while (n >= length && t + 1 < count) n -= length, t++;
    return pixel(t, n < length ? n : length - 1);
  }
  int64_t behind(int64_t t, int64_t n, int64_t steps) const {
    n += steps;
    while (n >= length && t > 0) n -= length, t--;
    return pixel(t, n < length ? n : length - 1);
  }
};

}  // namespace gspn
