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
#include <type_traits>

namespace gspn {

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
constexpr bool kHasRegisters = false;  // for the compiler of this architecture, see scan_backward.cuh
#else
constexpr bool kHasRegisters = true;
#endif

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

__device__ __forceinline__ float to_float(float value) { return value; }
__device__ __forceinline__ float to_float(bfloat16 value) { return __bfloat162float(value); }
__device__ __forceinline__ float to_float(float16 value) { return __half2float(value); }

__device__ __forceinline__ void round_to(float& out, float value) { out = value; }
__device__ __forceinline__ void round_to(bfloat16& out, float value) { out = __float2bfloat16_rn(value); }
__device__ __forceinline__ void round_to(float16& out, float value) { out = __float2half_rn(value); }

// V neighbouring elements, moved in one access of sizeof(T) * V bytes.
template <typename T, int V>
struct Packed {
  static constexpr int kWords = sizeof(T) * V / 4;
  using Bits = typename Word<sizeof(T) * V>::type;
  union {
    Bits bits;
    T elements[V];
    unsigned words[kWords > 0 ? kWords : 1];
  };

  __device__ Packed() {}  // left as it is: what is not loaded is not used

  __device__ __forceinline__ float get(int i) const {
    if constexpr (std::is_same_v<T, bfloat16> && kWords > 0)  // one instruction each
      return __uint_as_float(i % 2 ? words[i / 2] & 0xffff0000u : words[i / 2] << 16);
    else
      return to_float(elements[i]);
  }

  __device__ __forceinline__ void set(int i, float value) { round_to(elements[i], value); }

  __device__ __forceinline__ void fill(float value) {
    Packed<T, 4 / sizeof(T)> word;
    for (int i = 0; i < 4 / static_cast<int>(sizeof(T)); i++) round_to(word.elements[i], value);
    if constexpr (kWords > 0) {
#pragma unroll
      for (int i = 0; i < kWords; i++) words[i] = word.words[0];
    } else {
      elements[0] = word.elements[0];
    }
  }
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

// 2^x to 2 units in the last place; results below 2^-126 are 0.
__device__ __forceinline__ float fast_exp2(float x) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

// The smaller, or NaN if one is NaN, which fminf would drop. One instruction from sm_80 on.
__device__ __forceinline__ float min_or_nan(float a, float b) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  float result;
  asm("min.NaN.f32 %0, %1, %2;" : "=f"(result) : "f"(a), "f"(b));
  return result;
#else
  return a > b ? b : a;
#endif
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
