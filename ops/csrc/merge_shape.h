// The gated merge in plain integers: shared by every backend and free of torch.
#pragma once

#include <cstdint>

namespace gspn {

// h and u are (pixels, directions, channels), y is (pixels, channels).
struct MergeShape {
  int64_t pixels, directions, channels;
};

}  // namespace gspn
