// The second launch of the backward: sums of float32 parts in a fixed order.
#pragma once

#include "cuda_primitives.cuh"

namespace gspn {

// out[i] = sum over j of parts[i * inner + j * outer]: (K, elements) with inner 1, or (elements, parts) with outer 1.
template <typename T, int V>
__global__ void __launch_bounds__(256) sum_parts_kernel(const float* parts, int64_t elements, int count, int64_t inner,
                                                        int64_t outer, T* out) {
  const int64_t i = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * V;
  if (i >= elements) return;
  float sum[V];
#pragma unroll
  for (int v = 0; v < V; v++) sum[v] = 0.f;
  for (int j = 0; j < count; j++) {
    Packed<float, V> part;
    load_once<float, V>(part, parts + i * inner + j * outer);
#pragma unroll
    for (int v = 0; v < V; v++) sum[v] += part.get(v);
  }
  Packed<T, V> rounded;
#pragma unroll
  for (int v = 0; v < V; v++) rounded.set(v, sum[v]);
  store_packed<T, V>(out + i, rounded);
}

}  // namespace gspn
