// The few operations that the kernels take from the hardware: packed loads and stores, conversions, exponential,
// reciprocal, shared memory. Free of torch. The host emulation of tests/ops/emulation replaces this file by its own
// and compiles the kernels as they are.
#pragma once

#ifdef GSPN_HOST_EMULATION
#include "emulation.h"
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

namespace gspn {

using bfloat16 = __nv_bfloat16;
using float16 = __half;

template <int Bytes>
struct Word;
template <>
struct Word<2> {
  using type = unsigned short;
};
template <>
struct Word<4> {
  using type = unsigned int;
};
template <>
struct Word<8> {
  using type = uint2;
};
template <>
struct Word<16> {
  using type = uint4;
};

// V neighbouring elements, moved in one access of sizeof(T) * V bytes.
template <typename T, int V>
struct Packed {
  using Bits = typename Word<sizeof(T) * V>::type;
  union {
    Bits bits;
    T elements[V];
  };
  __device__ Packed() : bits{} {}
};

// For what other threads read again soon: stays in the caches.
template <typename T, int V>
__device__ __forceinline__ void load_shared_input(Packed<T, V>& packed, const T* from) {
  packed.bits = __ldg(reinterpret_cast<const typename Packed<T, V>::Bits*>(from));
}

// For what is read once: first to leave the caches.
template <typename T, int V>
__device__ __forceinline__ void load_once(Packed<T, V>& packed, const T* from) {
  packed.bits = __ldcs(reinterpret_cast<const typename Packed<T, V>::Bits*>(from));
}

template <typename T, int V>
__device__ __forceinline__ void store_packed(T* to, const Packed<T, V>& packed) {
  *reinterpret_cast<typename Packed<T, V>::Bits*>(to) = packed.bits;
}

__device__ __forceinline__ float to_float(float value) { return value; }
__device__ __forceinline__ float to_float(bfloat16 value) { return __bfloat162float(value); }
__device__ __forceinline__ float to_float(float16 value) { return __half2float(value); }

__device__ __forceinline__ void round_to(float& out, float value) { out = value; }
__device__ __forceinline__ void round_to(bfloat16& out, float value) { out = __float2bfloat16_rn(value); }
__device__ __forceinline__ void round_to(float16& out, float value) { out = __float2half_rn(value); }

// exp to 2 units in the last place plus the rounding of the argument: |x| 6e-8 relative; 0 below -87.
__device__ __forceinline__ float fast_exp(float x) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x * 1.4426950408889634f));
  return result;
}

__device__ __forceinline__ float fast_reciprocal(float x) {
  float result;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

__device__ __forceinline__ float shuffle_xor(float value, int mask) { return __shfl_xor_sync(~0u, value, mask); }

__device__ __forceinline__ float* shared_memory() {
  extern __shared__ float4 gspn_shared_memory[];
  return reinterpret_cast<float*>(gspn_shared_memory);
}

template <int V>
__device__ __forceinline__ void read_shared(const float* from, float (&values)[V]) {
  if constexpr (V == 4) {
    const float4 all = *reinterpret_cast<const float4*>(from);
    values[0] = all.x, values[1] = all.y, values[2] = all.z, values[3] = all.w;
  } else {
    static_assert(V == 1, "shared memory is read by 1 or 4 floats");
    values[0] = *from;
  }
}

template <int V>
__device__ __forceinline__ void write_shared(float* to, const float (&values)[V]) {
  if constexpr (V == 4) {
    *reinterpret_cast<float4*>(to) = make_float4(values[0], values[1], values[2], values[3]);
  } else {
    static_assert(V == 1, "shared memory is written by 1 or 4 floats");
    *to = values[0];
  }
}

}  // namespace gspn
#endif
