// The gated merge's launches, for its entries: defined in merge_cuda_kernels.cu.
#pragma once

#include <cuda_runtime_api.h>

#include "merge_shape.h"

namespace gspn {

// `alignment`: bytes that divide every address. u null: every gate is 1, and there is no du.
template <typename T>
void launch_merge(const MergeShape& s, int64_t alignment, const T* h, const T* u, T* y, cudaStream_t stream);

template <typename T>
void launch_merge_backward(const MergeShape& s, int64_t alignment, const T* grad_y, const T* h, const T* u, T* dh, T* du,
                           cudaStream_t stream);

}  // namespace gspn
