// How a test runs kernels in the emulation: reset, watch every tensor, run grids, finish.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "emulation.h"

namespace gspn {

void reset(unsigned seed);

// Makes [data, data + bytes) known: an input is only read; an output must be written once, everywhere.
void watch(const char* name, const void* data, int64_t bytes, bool output);

void run_grid(int64_t blocks, int lanes, int rows, int shared_bytes, const std::function<void()>& kernel);

// The first error, or "".
std::string finish();

struct EmulatedLaunch {
  template <typename Kernel, typename... Arguments>
  void operator()(Kernel kernel, int64_t blocks, int lanes, int rows, int shared_bytes, const Arguments&... arguments) {
    run_grid(blocks, lanes, rows, shared_bytes, [&] { kernel(arguments...); });
  }
};

}  // namespace gspn
