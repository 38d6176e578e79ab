// The scan's launches, for its entries. Each element type has its own file, scan_cuda_float32.cu and its siblings, so that
// they compile side by side.
#pragma once

#include <cuda_runtime_api.h>

#include "scan_plan.h"
#include "scan_pointers.h"

namespace gspn {

template <typename T>
void launch_forward(const ScanShape& s, const ScanPlan& plan, const ForwardPointers<T>& tensors, cudaStream_t stream);

// `dx_parts` as needs_dx_parts says, else null.
template <typename T>
void launch_backward(const ScanShape& s, const ScanPlan& plan, const BackwardPointers<T>& tensors, float* dx_parts,
                     cudaStream_t stream);

}  // namespace gspn
