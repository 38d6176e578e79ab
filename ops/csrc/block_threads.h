// How many threads a block has, in CUDA's three directions.
#pragma once

namespace gspn {

struct BlockThreads {
  int x, y = 1, z = 1;
  int count() const { return x * y * z; }
};

}  // namespace gspn
