// The few operations that the kernels take from the hardware: packed loads and stores, asynchronous copies, votes,
// conversions, exponential, reciprocal, shared memory. Free of torch. The host emulation of tests/ops/emulation replaces
// this file by its own and compiles the kernels as they are.
#pragma once

#ifdef GSPN_HOST_EMULATION
#include "emulation.h"
#else
#include <cstdint>
#include <type_traits>

#include "cuda_types.h"

namespace gspn {

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

  __device__ __forceinline__ void set_all(const float (&values)[V]) {
    if constexpr (std::is_same_v<T, bfloat16> && kWords > 0) {  // two in one instruction
#pragma unroll
      for (int i = 0; i < kWords; i++)
        asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(words[i]) : "f"(values[2 * i + 1]), "f"(values[2 * i]));
    } else {
#pragma unroll
      for (int i = 0; i < V; i++) set(i, values[i]);
    }
  }
};

// `stride` bytes times `pixel` after `base`.
template <typename T>
__device__ __forceinline__ T* at_pixel(T* base, int pixel, int stride) {
  T* result;
  asm("mad.wide.s32 %0, %1, %2, %3;" : "=l"(result) : "r"(pixel), "r"(stride), "l"(base));
  return result;
}

// The upper half of the product.
__device__ __forceinline__ unsigned high_product(unsigned a, unsigned b) { return __umulhi(a, b); }

// Takes the value out of the compiler's sight, which would else load it anew wherever it is used.
__device__ __forceinline__ int in_register(int value) {
  asm("" : "+r"(value));
  return value;
}

template <typename T>
__device__ __forceinline__ T* in_register(T* pointer) {
  asm("" : "+l"(pointer));
  return pointer;
}

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

// An address in shared memory, in bytes. Written out in PTX, since the compiler tears a generic pointer's wide
// accesses apart when it loses sight of their alignment.
using Shared = unsigned;

__device__ __forceinline__ Shared shared_memory() {
  extern __shared__ float4 gspn_shared_memory[];
  return static_cast<Shared>(__cvta_generic_to_shared(gspn_shared_memory));
}

template <int V>
__device__ __forceinline__ void read_shared(Shared from, float (&values)[V]) {
  static_assert(V == 1 || V == 4, "shared memory is read by 1 or 4 floats");
  if constexpr (V == 4)
    asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];"
                 : "=f"(values[0]), "=f"(values[1]), "=f"(values[2]), "=f"(values[3]) : "r"(from) : "memory");
  else
    asm volatile("ld.shared.f32 %0, [%1];" : "=f"(values[0]) : "r"(from) : "memory");
}

template <int V>
__device__ __forceinline__ void write_shared(Shared to, const float (&values)[V]) {
  static_assert(V == 1 || V == 4, "shared memory is written by 1 or 4 floats");
  if constexpr (V == 4)
    asm volatile("st.shared.v4.f32 [%0], {%1, %2, %3, %4};"
                 ::"r"(to), "f"(values[0]), "f"(values[1]), "f"(values[2]), "f"(values[3]) : "memory");
  else
    asm volatile("st.shared.f32 [%0], %1;" ::"r"(to), "f"(values[0]) : "memory");
}

// For what this kernel does not read again: first to leave the caches.
template <typename T, int V>
__device__ __forceinline__ void store_packed(T* to, const Packed<T, V>& packed) {
  __stcs(reinterpret_cast<typename Packed<T, V>::Bits*>(to), packed.bits);
}

// If `wanted`, starts a copy of `Bytes` from global to shared memory, or of as many zeros without reading `from`; until
// a wait for its group `to` holds nothing. Two bytes are copied at once: the asynchronous copies move 4, 8 or 16.
template <int Bytes>
__device__ __forceinline__ void start_copy(Shared to, const void* from, bool exists, bool wanted) {
  const unsigned flag = exists, condition = wanted;
  if constexpr (Bytes == 2) {
    if (!wanted) return;
    const unsigned short value = exists ? __ldg(static_cast<const unsigned short*>(from)) : 0;
    asm volatile("st.shared.u16 [%0], %1;" ::"r"(to), "h"(value) : "memory");
  } else if constexpr (Bytes == 16) {
    asm volatile("{\n.reg .pred p, q;\nsetp.eq.u32 p, %2, 0;\nsetp.ne.u32 q, %3, 0;\n"
                 "@q cp.async.cg.shared.global [%0], [%1], 16, p;\n}"
                 ::"r"(to), "l"(from), "r"(flag), "r"(condition) : "memory");
  } else {
    asm volatile("{\n.reg .pred p, q;\nsetp.eq.u32 p, %2, 0;\nsetp.ne.u32 q, %3, 0;\n"
                 "@q cp.async.ca.shared.global [%0], [%1], %4, p;\n}"
                 ::"r"(to), "l"(from), "r"(flag), "r"(condition), "n"(Bytes) : "memory");
  }
}

// Closes the group of the copies that this thread has started since the last one; it may be empty.
__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Returns when at most the `Groups` youngest groups of this thread have not landed.
template <int Groups>
__device__ __forceinline__ void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(Groups) : "memory");
}

template <typename T, int V>
__device__ __forceinline__ void read_copy(Packed<T, V>& packed, Shared from) {
  constexpr int bytes = sizeof(T) * V;
  if constexpr (bytes == 2)
    asm volatile("ld.shared.u16 %0, [%1];" : "=h"(packed.bits) : "r"(from) : "memory");
  else if constexpr (bytes == 4)
    asm volatile("ld.shared.u32 %0, [%1];" : "=r"(packed.words[0]) : "r"(from) : "memory");
  else if constexpr (bytes == 8)
    asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];"
                 : "=r"(packed.words[0]), "=r"(packed.words[1]) : "r"(from) : "memory");
  else
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(packed.words[0]), "=r"(packed.words[1]), "=r"(packed.words[2]), "=r"(packed.words[3])
                 : "r"(from) : "memory");
}

// For other threads to read after a barrier, by `read_copy` too.
template <typename T, int V>
__device__ __forceinline__ void write_copy(Shared to, const Packed<T, V>& packed) {
  constexpr int bytes = sizeof(T) * V;
  static_assert(bytes <= 4, "shared memory is written by 2 or 4 bytes here");
  if constexpr (bytes == 2)
    asm volatile("st.shared.u16 [%0], %1;" ::"r"(to), "h"(packed.bits) : "memory");
  else
    asm volatile("st.shared.u32 [%0], %1;" ::"r"(to), "r"(packed.words[0]) : "memory");
}

// A barrier for those whose condition holds, the same in all of a warp. Every thread of the block comes to one of them,
// not all to the same.
__device__ __forceinline__ void meet_if(bool here) {
  const unsigned flag = here;
  asm volatile("{\n.reg .pred p;\nsetp.ne.u32 p, %0, 0;\n@p bar.sync 1;\n}" ::"r"(flag) : "memory");
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

// The sum of the squares of packed elements, two by two where they are halves; only good for a comparison.
template <typename T, int V>
__device__ __forceinline__ bool squares_below(const Packed<T, V> (&packed)[3], float bound) {
  if constexpr (sizeof(T) == 2 && V > 1) {
    using Pair = std::conditional_t<std::is_same_v<T, bfloat16>, __nv_bfloat162, __half2>;
    const auto pair = [&](int i) {
      return reinterpret_cast<const Pair&>(packed[i / (V / 2)].words[i % (V / 2)]);
    };
    Pair sum = __hmul2(pair(0), pair(0)), limit;
#pragma unroll
    for (int i = 1; i < 3 * V / 2; i++) sum = __hfma2(pair(i), pair(i), sum);
    round_to(limit.x, bound);
    limit.y = limit.x;
    return __hblt2(sum, limit);
  } else {
    float sum = 0.f;
#pragma unroll
    for (int i = 0; i < 3 * V; i++) sum = fmaf(packed[i / V].get(i % V), packed[i / V].get(i % V), sum);
    return sum < bound;
  }
}

// Whether `condition` holds in every thread of the warp; all of them must come here.
__device__ __forceinline__ bool warp_all(bool condition) { return __all_sync(~0u, condition); }

__device__ __forceinline__ float fast_reciprocal(float x) {
  float result;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

__device__ __forceinline__ float shuffle_xor(float value, int mask) { return __shfl_xor_sync(~0u, value, mask); }

}  // namespace gspn
#endif
