// How a test runs kernels in the emulation: reset, watch every tensor, run grids, finish.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "block_threads.h"
#include "emulation.h"

namespace gspn {

void reset(unsigned seed);

// Makes [data, data + bytes) known: an input is only read; an output must be written once, everywhere.
void watch(const char* name, const void* data, int64_t bytes, bool output);

// Blocks `first` to `blocks`.
void run_grid(int64_t first, int64_t blocks, BlockThreads threads, int shared_bytes, const std::function<void()>& kernel);

// The first error, or "".
std::string finish();

// `first_block` skips what a test of large indices has no memory for; its tensors begin with `shifted`. `later` is the
// same for the launches that follow, in their order.
struct EmulatedLaunch {
  int64_t first_block = 0;
  std::vector<int64_t> later = {};

  template <typename Kernel, typename... Arguments>
  void operator()(Kernel kernel, int64_t blocks, BlockThreads threads, int shared_bytes, const Arguments&... arguments) {
    run_grid(first_block, blocks, threads, shared_bytes, [&] { kernel(arguments...); });
    first_block = 0;
    if (later.empty()) return;
    first_block = later.front();
    later.erase(later.begin());
  }
};

// Where a tensor would begin whose element number `elements` is the first at `data`.
template <typename T>
T* shifted(void* data, int64_t elements) {
  if (!data) return nullptr;
  return reinterpret_cast<T*>(reinterpret_cast<intptr_t>(data) - elements * static_cast<int64_t>(sizeof(T)));
}

}  // namespace gspn
