// Starts kernels on a CUDA stream.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <mutex>
#include <set>
#include <utility>

#include "block_threads.h"
#include "cuda_check.h"

namespace gspn {

// Lets a kernel have all of the current device's shared memory, once: a number that changed from launch to launch could
// be made too small by another thread between its setting and the launch.
inline void allow_shared_memory(const void* kernel) {
  static std::mutex mutex;
  static std::set<std::pair<const void*, int>> allowed;
  int device = 0, most = 0;
  check_cuda(cudaGetDevice(&device));
  const std::lock_guard<std::mutex> guard(mutex);
  if (allowed.count({kernel, device})) return;
  check_cuda(cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
  check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most));
  allowed.insert({kernel, device});
}

struct StreamLaunch {
  cudaStream_t stream;

  template <typename Kernel, typename... Arguments>
  void operator()(Kernel kernel, int64_t blocks, BlockThreads threads, int shared_bytes, const Arguments&... arguments) {
    constexpr int without_opt_in = 48 * 1024;
    if (shared_bytes > without_opt_in) allow_shared_memory(reinterpret_cast<const void*>(kernel));
    const dim3 grid(static_cast<unsigned>(blocks)), block(threads.x, threads.y, threads.z);
    kernel<<<grid, block, shared_bytes, stream>>>(arguments...);
    check_cuda(cudaGetLastError());
  }
};

}  // namespace gspn
