// CUDA's execution model on the host, enough of it to run the scan's kernels as they are and to watch them.
//
// A block's threads are fibers, resumed in random order between barriers. Reported as errors: reading or writing
// outside a tensor, an unaligned access, an element written twice or read before it is written, shared memory read
// before it is written, two threads that meet in one half-word of shared memory without a barrier between them, and
// threads that wait for one another at different places. Shared memory starts as NaN. An asynchronous copy takes from
// what it goes to all that was there, lands no sooner than its thread waits for its group, and is an error to read
// before; that it has landed is known to other threads after a barrier.
//
// This file stands in for ops/csrc/cuda_primitives.cuh.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)
#define __maxnreg__(...)

struct Dimensions {
  int x = 0, y = 0, z = 0;
};
extern Dimensions threadIdx, blockIdx, blockDim;

namespace gspn {

using std::fmaf;
using std::max;
using std::min;

void barrier(int number = 0);
void meet_if(bool here);
void fail(const char* what, const void* where);
void check_global(const void* address, int bytes, bool writes);
float exchange(float value, int mask);
bool vote(bool value);

// An address in shared memory, in bytes.
using Shared = uint32_t;
Shared shared_memory();
char* use_shared(Shared address, int bytes, bool writes);
void start_copy(Shared to, const void* from, int bytes, bool exists);
void commit_copies();
void wait_for_copies(int groups);

struct bfloat16 {
  uint16_t bits;
};
struct float16 {
  uint16_t bits;
};

inline float from_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

inline uint32_t to_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return bits;
}

inline float to_float(float value) { return value; }
inline float to_float(bfloat16 value) { return from_bits(uint32_t{value.bits} << 16); }

inline float to_float(float16 value) {
  const float sign = value.bits & 0x8000 ? -1.f : 1.f;
  const int exponent = value.bits >> 10 & 31, mantissa = value.bits & 1023;
  if (exponent == 31) return mantissa ? NAN : sign * INFINITY;
  return sign * (exponent ? std::ldexp(1024.f + mantissa, exponent - 25) : std::ldexp(float(mantissa), -24));
}

// Round to nearest, ties to even, as the hardware does.
inline void round_to(float& out, float value) { out = value; }

inline void round_to(bfloat16& out, float value) {
  const uint32_t bits = to_bits(value);
  const bool nan = value != value;
  out.bits = nan ? 0x7fff : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

inline void round_to(float16& out, float value) {
  const uint16_t sign = to_bits(value) >> 16 & 0x8000;
  const float magnitude = std::fabs(value);
  if (value != value) {
    out.bits = 0x7fff;
  } else if (magnitude >= 65520.f) {
    out.bits = sign | 0x7c00;
  } else {
    const int exponent = magnitude < 0x1p-14f ? -14 : std::ilogb(magnitude);
    const int units = int(std::nearbyint(std::ldexp(magnitude, 10 - exponent)));  // of the last place
    out.bits = sign | uint16_t(((exponent + 14) << 10) + units);
  }
}

// Registers hold NaN until they are loaded.
template <typename T, int V>
struct Packed {
  T elements[V];
  Packed() {
    fill(NAN);
  }
  float get(int i) const { return to_float(elements[i]); }
  void set(int i, float value) { round_to(elements[i], value); }
  void set_all(const float (&values)[V]) {
    for (int i = 0; i < V; i++) set(i, values[i]);
  }
  void fill(float value) {
    for (T& element : elements) round_to(element, value);
  }
};

template <typename T, int V>
void load_once(Packed<T, V>& packed, const T* from) {
  check_global(from, sizeof(T) * V, false);
  std::memcpy(packed.elements, from, sizeof(T) * V);
}

template <typename T, int V>
void load_shared_input(Packed<T, V>& packed, const T* from) {
  load_once<T, V>(packed, from);
}

template <typename T, int V>
void store_packed(T* to, const Packed<T, V>& packed) {
  check_global(to, sizeof(T) * V, true);
  std::memcpy(to, packed.elements, sizeof(T) * V);
}

template <int Bytes>
void start_copy(Shared to, const void* from, bool exists, bool wanted) {
  if (wanted) start_copy(to, from, Bytes, exists);
}

template <int Groups>
void wait_for_copies() {
  wait_for_copies(Groups);
}

template <typename T, int V>
void read_copy(Packed<T, V>& packed, Shared from) {
  std::memcpy(packed.elements, use_shared(from, sizeof(T) * V, false), sizeof(T) * V);
}

template <typename T, int V>
void write_copy(Shared to, const Packed<T, V>& packed) {
  std::memcpy(use_shared(to, sizeof(T) * V, true), packed.elements, sizeof(T) * V);
}

template <typename T>
T* at_pixel(T* base, int pixel, int stride) {
  return reinterpret_cast<T*>(reinterpret_cast<intptr_t>(base) + int64_t{pixel} * stride);
}

inline unsigned high_product(unsigned a, unsigned b) { return uint64_t{a} * b >> 32; }

template <typename T>
T in_register(T value) {
  return value;
}

template <typename T, int V>
bool squares_below(const Packed<T, V> (&packed)[3], float bound) {
  float most = 0;  // of the sums that the hardware forms, elements of a pair side by side
  for (int side = 0; side < (V > 1 ? 2 : 1); side++) {
    float sum = 0;
    for (int i = side; i < 3 * V; i += V > 1 ? 2 : 1) sum += packed[i / V].get(i % V) * packed[i / V].get(i % V);
    most = most > sum || most != most ? most : sum;
  }
  return most < bound;
}

inline bool warp_all(bool condition) { return vote(condition); }

inline float fast_exp2(float x) {
  const float result = std::exp2(x);
  return result < 0x1p-126f ? 0.f : result;
}

inline float min_or_nan(float a, float b) { return a > b ? b : a; }
inline float fast_reciprocal(float x) { return 1.f / x; }
inline float shuffle_xor(float value, int mask) { return exchange(value, mask); }

template <int V>
void read_shared(Shared from, float (&values)[V]) {
  std::memcpy(values, use_shared(from, 4 * V, false), 4 * V);
}

template <int V>
void write_shared(Shared to, const float (&values)[V]) {
  std::memcpy(use_shared(to, 4 * V, true), values, 4 * V);
}

}  // namespace gspn

inline void __syncthreads() { gspn::barrier(); }
