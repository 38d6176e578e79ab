#include "cuda_launch.cuh"
#include "merge.cuh"
#include "merge_launch.h"

namespace gspn {

template <typename T>
void launch_merge(const MergeShape& s, int64_t alignment, const T* h, const T* u, T* y, cudaStream_t stream) {
  StreamLaunch launch{stream};
  start_merge<T>(s, merge_vector<T>(s, alignment), h, u, y, launch);
}

template <typename T>
void launch_merge_backward(const MergeShape& s, int64_t alignment, const T* grad_y, const T* h, const T* u, T* dh, T* du,
                           cudaStream_t stream) {
  StreamLaunch launch{stream};
  start_merge_backward<T>(s, merge_vector<T>(s, alignment), grad_y, h, u, dh, du, launch);
}

#define GSPN_DEFINE_MERGE_LAUNCHES(T)                                                                        \
  template void launch_merge<T>(const MergeShape&, int64_t, const T*, const T*, T*, cudaStream_t);           \
  template void launch_merge_backward<T>(const MergeShape&, int64_t, const T*, const T*, const T*, T*, T*,   \
                                         cudaStream_t);

GSPN_DEFINE_MERGE_LAUNCHES(float)
GSPN_DEFINE_MERGE_LAUNCHES(bfloat16)
GSPN_DEFINE_MERGE_LAUNCHES(float16)

}  // namespace gspn
