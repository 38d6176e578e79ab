// The depthwise convolution in plain integers: shared by every backend and free of torch.
#pragma once

#include <cstdint>

namespace gspn {
namespace conv {

// x and y are (batch, height, width, channels); the kernel is `size` by `size`, and zeros surround the map.
struct ConvShape {
  int64_t batch, height, width, channels;
  int size;
};

}  // namespace conv
}  // namespace gspn
