// Vectors of the instruction set that a file is compiled for, by the compilers' vector extension.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__F16C__)
#include <immintrin.h>
#endif

namespace gspn {
namespace {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

template <typename T>
constexpr int kLanes = kVectorBytes / sizeof(T);

template <typename T>
struct VectorOf;
template <>
struct VectorOf<float> {
  typedef float type __attribute__((vector_size(kVectorBytes)));
  typedef int32_t mask __attribute__((vector_size(kVectorBytes)));
};
template <>
struct VectorOf<double> {
  typedef double type __attribute__((vector_size(kVectorBytes)));
  typedef int64_t mask __attribute__((vector_size(kVectorBytes)));
};
template <typename T>
using Vector = typename VectorOf<T>::type;

#define GSPN_INLINE inline __attribute__((always_inline))

// Storage types of half precision: their bits alone.
struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

template <typename S>
struct ComputeOf {
  using type = float;
};
template <>
struct ComputeOf<double> {
  using type = double;
};
template <typename S>
using Compute = typename ComputeOf<S>::type;

typedef uint16_t Halves __attribute__((vector_size(kVectorBytes / 2)));
typedef uint32_t Words __attribute__((vector_size(kVectorBytes)));

GSPN_INLINE float half_to_float(uint16_t bits) {
  // Shifting the exponent field into place and multiplying by 2^112 also normalises the subnormals.
  const uint32_t word = static_cast<uint32_t>(bits & 0x7fff) << 13;
  float value;
  std::memcpy(&value, &word, 4);
  value = word >= (0x7c00u << 13) ? (word == (0x7c00u << 13) ? INFINITY : NAN) : value * 0x1p112f;
  return bits & 0x8000 ? -value : value;
}

GSPN_INLINE uint16_t float_to_half(float value) {
  uint32_t word;
  std::memcpy(&word, &value, 4);
  const uint16_t sign = (word >> 16) & 0x8000;
  word &= 0x7fffffff;
  if (word >= 0x7f800000) return sign | (word > 0x7f800000 ? 0x7e00 : 0x7c00);
  if (word >= 0x477ff000) return sign | 0x7c00;  // rounds to 2^16 or more
  if (word < 0x38800000) {                       // subnormal: let the float adder round at bit 2^-24
    float magnitude;
    std::memcpy(&magnitude, &word, 4);
    magnitude += 0.5f;
    std::memcpy(&word, &magnitude, 4);
    return sign | static_cast<uint16_t>(word - 0x3f000000);
  }
  word += 0xfff + ((word >> 13) & 1) - (112u << 23);
  return sign | static_cast<uint16_t>(word >> 13);
}

GSPN_INLINE void widen(const float* from, Vector<float>& to) { std::memcpy(&to, from, sizeof to); }
GSPN_INLINE void widen(const double* from, Vector<double>& to) { std::memcpy(&to, from, sizeof to); }
GSPN_INLINE void widen(const BFloat16* from, Vector<float>& to) {
  Halves bits;
  std::memcpy(&bits, from, sizeof bits);
  const Words words = __builtin_convertvector(bits, Words) << 16;
  std::memcpy(&to, &words, sizeof to);
}
GSPN_INLINE void widen(const Float16* from, Vector<float>& to) {
#if defined(__AVX512F__)
  to = reinterpret_cast<Vector<float>>(_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from))));
#elif defined(__F16C__)
  to = reinterpret_cast<Vector<float>>(_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
#else
  for (int i = 0; i < kLanes<float>; i++) to[i] = half_to_float(from[i].bits);
#endif
}

GSPN_INLINE void narrow(const Vector<float>& from, float* to) { std::memcpy(to, &from, sizeof from); }
GSPN_INLINE void narrow(const Vector<double>& from, double* to) { std::memcpy(to, &from, sizeof from); }
GSPN_INLINE void narrow(const Vector<float>& from, BFloat16* to) {
  Words words;
  std::memcpy(&words, &from, sizeof words);
  const Words rounded = (words + 0x7fff + ((words >> 16) & 1)) >> 16;  // to nearest, ties to even
  const Words quiet = (words >> 16) | 0x40;                            // a NaN must not round to infinity
  const Words bits = (words & 0x7fffffff) > 0x7f800000 ? quiet : rounded;
  const Halves halves = __builtin_convertvector(bits, Halves);
  std::memcpy(to, &halves, sizeof halves);
}
GSPN_INLINE void narrow(const Vector<float>& from, Float16* to) {
#if defined(__AVX512F__)
  const __m256i bits = _mm512_cvtps_ph(reinterpret_cast<__m512>(from), _MM_FROUND_TO_NEAREST_INT);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), bits);
#elif defined(__F16C__)
  const __m128i bits = _mm256_cvtps_ph(reinterpret_cast<__m256>(from), _MM_FROUND_TO_NEAREST_INT);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), bits);
#else
  for (int i = 0; i < kLanes<float>; i++) to[i].bits = float_to_half(from[i]);
#endif
}

// Loads `count` elements as a vector; lanes past them are 0.
template <typename S>
GSPN_INLINE Vector<Compute<S>> load(const S* from, int64_t count) {
  constexpr int lanes = kLanes<Compute<S>>;
  Vector<Compute<S>> v;
  if (__builtin_expect(count >= lanes, 1)) {
    widen(from, v);
  } else {
    S padded[lanes] = {};
    std::memcpy(padded, from, count * sizeof(S));
    widen(padded, v);
  }
  return v;
}

template <typename S>
GSPN_INLINE void store(const Vector<Compute<S>>& v, S* to, int64_t count) {
  constexpr int lanes = kLanes<Compute<S>>;
  if (__builtin_expect(count >= lanes, 1)) {
    narrow(v, to);
  } else {
    S padded[lanes];
    narrow(v, padded);
    std::memcpy(to, padded, count * sizeof(S));
  }
}

// Stores a whole vector past the caches where the instruction set can: a line that is wholly written need not be read
// first. `to` is aligned to the vector.
template <typename S>
GSPN_INLINE void stream(const Vector<Compute<S>>& v, S* to) {
  store(v, to, kLanes<Compute<S>>);
}
#if defined(__AVX512F__)
GSPN_INLINE void stream(const Vector<float>& v, float* to) { _mm512_stream_ps(to, reinterpret_cast<__m512>(v)); }
GSPN_INLINE void stream_fence() { _mm_sfence(); }
#else
GSPN_INLINE void stream_fence() {}
#endif

// The value as it is: a sum that it goes into does not become a multiplication and addition in one, with one rounding.
template <typename V>
GSPN_INLINE V uncontracted(V v) {
#if defined(__x86_64__)
  asm("" : "+v"(v));
#elif defined(__aarch64__)
  asm("" : "+w"(v));
#else
  asm("" : "+m"(v));
#endif
  return v;
}

template <typename V>
GSPN_INLINE V minimum(const V& a, const V& b) {
  return a < b ? a : b;
}
template <typename V>
GSPN_INLINE V maximum(const V& a, const V& b) {
  return a > b ? a : b;
}

// |v|, by clearing the sign bits: one instruction where a comparison and a selection take three.
GSPN_INLINE Vector<float> magnitude(const Vector<float>& v) {
  return reinterpret_cast<Vector<float>>(reinterpret_cast<VectorOf<float>::mask>(v) & 0x7fffffff);
}
GSPN_INLINE Vector<double> magnitude(const Vector<double>& v) {
  return reinterpret_cast<Vector<double>>(reinterpret_cast<VectorOf<double>::mask>(v) & 0x7fffffffffffffff);
}

// Whether any lane of a comparison's result is set.
template <typename M>
GSPN_INLINE bool any(const M& mask) {
#if defined(__AVX512DQ__)
  return _mm512_movepi32_mask(reinterpret_cast<__m512i>(mask));
#elif defined(__AVX2__)
  return _mm256_movemask_epi8(reinterpret_cast<__m256i>(mask));
#else
  uint64_t words[kVectorBytes / 8], set = 0;
  std::memcpy(words, &mask, sizeof words);
  for (uint64_t word : words) set |= word;
  return set;
#endif
}

// 1 / v for normal v, to about an ulp.
template <typename V>
GSPN_INLINE V reciprocal(const V& v) {
  return 1 / v;
}
#if defined(__AVX512F__)
GSPN_INLINE Vector<float> reciprocal(const Vector<float>& v) {
  const Vector<float> r = reinterpret_cast<Vector<float>>(_mm512_rcp14_ps(reinterpret_cast<__m512>(v)));
  return r + r * (1 - v * r);  // one step of Newton's: a quarter of a division's time
}
#endif

// exp(x) where the result is a normal number: |x| < 87.
GSPN_INLINE Vector<float> exp_bounded(const Vector<float>& x) {
  using Integers = VectorOf<float>::mask;
  const float round = 0x1.8p23f;  // adding it leaves the nearest integer in the low bits
  const Vector<float> shifted = x * 1.44269504f + round;
  const Vector<float> n = shifted - round;
  const Vector<float> r = (x - n * 0.693359375f) + n * 2.12194440e-4f;  // ln 2 in two parts
  Vector<float> p = r * 1.38436444e-3f + 8.37416295e-3f;  // minimax on |r| <= ln(2)/2: relative error 2e-9
  p = p * r + 4.16680016e-2f;
  p = p * r + 1.66664317e-1f;
  p = p * r + 4.99999940e-1f;
  p = p * r + 1.f;
  p = p * r + 1.f;
  // The integer n sits in the low bits of `shifted`; moved to the exponent field it multiplies by 2^n.
  return reinterpret_cast<Vector<float>>(reinterpret_cast<Integers>(p) + (reinterpret_cast<Integers>(shifted) << 23));
}
GSPN_INLINE Vector<double> exp_bounded(const Vector<double>& x) {
  Vector<double> y;
  for (int i = 0; i < kLanes<double>; i++) y[i] = std::exp(x[i]);
  return y;
}

// exp(x) for any x <= 0, 0 where it would be subnormal.
template <typename V>
GSPN_INLINE V exp_nonpositive(const V& x) {
  const V zero = {};
  return x < -87 ? zero : exp_bounded(x);
}

}  // namespace
}  // namespace gspn
