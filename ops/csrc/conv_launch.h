// The depthwise convolution's launches, for its entries; files by element type as in scan_launch.h.
#pragma once

#include <cuda_runtime_api.h>

#include "conv_plan.h"
#include "conv_pointers.h"

namespace gspn {
namespace conv {

template <typename T>
void launch_forward(const ConvShape& s, const ConvPlan& plan, const ForwardPointers<T>& tensors, cudaStream_t stream);

// `plan` null: there are no parts, and the sums are zero. `dbias` may be null.
template <typename T>
void launch_gradient(const ConvShape& s, const ConvPlan* plan, const GradientPointers<T>& tensors, T* dweight, T* dbias,
                     cudaStream_t stream);

}  // namespace conv
}  // namespace gspn
