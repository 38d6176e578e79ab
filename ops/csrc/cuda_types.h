// The 16-bit element types of the CUDA backend, for its host code too.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

namespace gspn {

using bfloat16 = __nv_bfloat16;
using float16 = __half;

}  // namespace gspn
