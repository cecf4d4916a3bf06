// One vector type per instruction set. F: LANES floats, I: LANES int32. + - * / work on both; what needs an
// instruction of its own is a function here. Everything is static: included once per object.
// Rule for promise 1: fma() is always meant, a * b + c never is (-ffp-contract=off).
#pragma once
#include <math.h>
#include <stdint.h>
#include <string.h>

#include "kernels.h"

#if RL_LEVEL > 0
#include <immintrin.h>
#endif

namespace ridgeline {
namespace {

#if RL_LEVEL == 2

constexpr int LANES = 16;
typedef __m512 F;
typedef int I __attribute__((vector_size(64)));

RL_INLINE F load(const float* p) { return _mm512_loadu_ps(p); }
RL_INLINE void store(float* p, F x) { _mm512_storeu_ps(p, x); }
RL_INLINE I load_int(const void* p) { return (I)_mm512_loadu_si512(p); }
RL_INLINE __mmask16 first(int n) { return static_cast<__mmask16>((1u << n) - 1); }
RL_INLINE F load_part(const float* p, int n) { return _mm512_maskz_loadu_ps(first(n), p); }
RL_INLINE void store_part(float* p, F x, int n) { _mm512_mask_storeu_ps(p, first(n), x); }
RL_INLINE F splat(float x) { return _mm512_set1_ps(x); }
RL_INLINE I splat_int(int x) { return (I)_mm512_set1_epi32(x); }
RL_INLINE F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
RL_INLINE F fmsub(F a, F b, F c) { return _mm512_fmsub_ps(a, b, c); }
RL_INLINE F max(F a, F b) { return _mm512_max_ps(a, b); }  // b when either is NaN, in every instruction set
RL_INLINE F min(F a, F b) { return _mm512_min_ps(a, b); }
RL_INLINE F sqrt(F x) { return _mm512_sqrt_ps(x); }
RL_INLINE F abs(F x) { return _mm512_abs_ps(x); }
RL_INLINE I round_int(F x) { return (I)_mm512_cvtps_epi32(x); }
RL_INLINE F to_float(I x) { return _mm512_cvtepi32_ps((__m512i)x); }
RL_INLINE F bits(I x) { return (F)x; }
RL_INLINE float sum(F x) { return _mm512_reduce_add_ps(x); }
RL_INLINE float largest(F x) { return _mm512_reduce_max_ps(x); }
RL_INLINE int sum(I x) { return _mm512_reduce_add_epi32((__m512i)x); }
RL_INLINE void store_int8(int8_t* p, I x) { _mm_storeu_si128((__m128i*)p, _mm512_cvtsepi32_epi8((__m512i)x)); }
RL_INLINE F load_half(const uint16_t* p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p)); }
RL_INLINE I load_int8(const int8_t* p) { return (I)_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p)); }
RL_INLINE I load_int4(const uint8_t* p) {  // LANES of them, the low half of a byte first
  __m128i both = _mm_loadl_epi64((const __m128i*)p), mask = _mm_set1_epi8(15);
  __m128i high = _mm_and_si128(_mm_srli_epi16(both, 4), mask);
  return (I)_mm512_cvtepu8_epi32(_mm_unpacklo_epi8(_mm_and_si128(both, mask), high));
}
RL_INLINE I load_bytes(const uint8_t* p) { return (I)_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)p)); }
RL_INLINE F load_bf16(const uint16_t* p) {
  return (F)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)), 16);
}
RL_INLINE F load_bf16_part(const uint16_t* p, int n) {
  return (F)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(first(n), p)), 16);
}
// Lanes whose number is outside [low, high] become `other`.
RL_INLINE F keep_range(F x, I number, int low, int high, F other) {
  __mmask16 in = _mm512_cmp_epi32_mask((__m512i)number, _mm512_set1_epi32(low), _MM_CMPINT_NLT) &
                 _mm512_cmp_epi32_mask((__m512i)number, _mm512_set1_epi32(high), _MM_CMPINT_LE);
  return _mm512_mask_blend_ps(in, other, x);
}
RL_INLINE F keep_at_least(F x, F threshold, F y) {  // y where x >= threshold, else 0
  return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, threshold, _CMP_NLT_UQ), y);
}
RL_INLINE I numbers() { return (I)_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15); }

#elif RL_LEVEL == 1

constexpr int LANES = 8;
typedef __m256 F;
typedef int I __attribute__((vector_size(32)));

RL_INLINE F load(const float* p) { return _mm256_loadu_ps(p); }
RL_INLINE void store(float* p, F x) { _mm256_storeu_ps(p, x); }
RL_INLINE I load_int(const void* p) { return (I)_mm256_loadu_si256((const __m256i*)p); }
RL_INLINE F splat(float x) { return _mm256_set1_ps(x); }
RL_INLINE I splat_int(int x) { return (I)_mm256_set1_epi32(x); }
RL_INLINE F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
RL_INLINE F fmsub(F a, F b, F c) { return _mm256_fmsub_ps(a, b, c); }
RL_INLINE F max(F a, F b) { return _mm256_max_ps(a, b); }
RL_INLINE F min(F a, F b) { return _mm256_min_ps(a, b); }
RL_INLINE F sqrt(F x) { return _mm256_sqrt_ps(x); }
RL_INLINE F abs(F x) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), x); }
RL_INLINE I round_int(F x) { return (I)_mm256_cvtps_epi32(x); }
RL_INLINE F to_float(I x) { return _mm256_cvtepi32_ps((__m256i)x); }
RL_INLINE F bits(I x) { return (F)x; }
RL_INLINE float sum(F x) {
  __m128 half = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  half = _mm_add_ps(half, _mm_movehl_ps(half, half));
  return half[0] + half[1];
}
RL_INLINE float largest(F x) {
  __m128 half = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  half = _mm_max_ps(half, _mm_movehl_ps(half, half));
  return half[0] > half[1] ? half[0] : half[1];
}
RL_INLINE int sum(I x) {
  int total = 0;
#pragma GCC unroll 8
  for (int i = 0; i < LANES; i++) total += x[i];
  return total;
}
RL_INLINE void store_int8(int8_t* p, I x) {
  __m128i words = _mm_packs_epi32(_mm256_castsi256_si128((__m256i)x), _mm256_extracti128_si256((__m256i)x, 1));
  _mm_storel_epi64((__m128i*)p, _mm_packs_epi16(words, words));
}
RL_INLINE F load_half(const uint16_t* p) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p)); }
RL_INLINE I load_int8(const int8_t* p) { return (I)_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)p)); }
RL_INLINE I load_int4(const uint8_t* p) {
  int word;
  memcpy(&word, p, 4);
  __m128i both = _mm_cvtsi32_si128(word), mask = _mm_set1_epi8(15);
  __m128i high = _mm_and_si128(_mm_srli_epi16(both, 4), mask);
  return (I)_mm256_cvtepu8_epi32(_mm_unpacklo_epi8(_mm_and_si128(both, mask), high));
}
RL_INLINE I load_bytes(const uint8_t* p) { return (I)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)p)); }
RL_INLINE F load_bf16(const uint16_t* p) {
  return (F)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p)), 16);
}
RL_INLINE F keep_range(F x, I number, int low, int high, F other) {
  I out = (number < splat_int(low)) | (number > splat_int(high));
  return _mm256_blendv_ps(x, other, (F)out);
}
RL_INLINE F keep_at_least(F x, F threshold, F y) { return _mm256_and_ps(_mm256_cmp_ps(x, threshold, _CMP_NLT_UQ), y); }
RL_INLINE I numbers() { return I{0, 1, 2, 3, 4, 5, 6, 7}; }

#else  // plain C++ with GCC vectors: any processor

constexpr int LANES = 4;
typedef float F __attribute__((vector_size(16)));
typedef int I __attribute__((vector_size(16)));

RL_INLINE F load(const float* p) {
  F x;
  memcpy(&x, p, sizeof x);
  return x;
}
RL_INLINE void store(float* p, F x) { memcpy(p, &x, sizeof x); }
RL_INLINE I load_int(const void* p) {
  I x;
  memcpy(&x, p, sizeof x);
  return x;
}
RL_INLINE F splat(float x) { return F{x, x, x, x}; }
RL_INLINE I splat_int(int x) { return I{x, x, x, x}; }
RL_INLINE F fma(F a, F b, F c) { return a * b + c; }
RL_INLINE F fmsub(F a, F b, F c) { return a * b - c; }
RL_INLINE F max(F a, F b) { return a > b ? a : b; }
RL_INLINE F min(F a, F b) { return a < b ? a : b; }
RL_INLINE F sqrt(F x) { return F{sqrtf(x[0]), sqrtf(x[1]), sqrtf(x[2]), sqrtf(x[3])}; }
RL_INLINE F bits(I x) { return (F)x; }
RL_INLINE F abs(F x) { return (F)((I)x & 0x7fffffff); }
RL_INLINE I round_int(F x) {  // adding 1.5 * 2^23 rounds to nearest even; |x| stays far below 2^22 here
  const F magic = splat(12582912.0f);
  return __builtin_convertvector(x + magic - magic, I);
}
RL_INLINE F to_float(I x) { return __builtin_convertvector(x, F); }
RL_INLINE float sum(F x) { return (x[0] + x[2]) + (x[1] + x[3]); }
RL_INLINE float largest(F x) {
  float a = x[0] > x[2] ? x[0] : x[2], b = x[1] > x[3] ? x[1] : x[3];
  return a > b ? a : b;
}
RL_INLINE int sum(I x) { return x[0] + x[1] + x[2] + x[3]; }
RL_INLINE void store_int8(int8_t* p, I x) {
  for (int i = 0; i < LANES; i++) p[i] = static_cast<int8_t>(x[i] < -128 ? -128 : x[i] > 127 ? 127 : x[i]);
}
RL_INLINE I load_int8(const int8_t* p) { return I{p[0], p[1], p[2], p[3]}; }
RL_INLINE I load_int4(const uint8_t* p) { return I{p[0] & 15, p[0] >> 4, p[1] & 15, p[1] >> 4}; }
RL_INLINE I load_bytes(const uint8_t* p) { return I{p[0], p[1], p[2], p[3]}; }
RL_INLINE F load_bf16(const uint16_t* p) { return (F)(I{p[0], p[1], p[2], p[3]} << 16); }
RL_INLINE F keep_range(F x, I number, int low, int high, F other) {
  return (number >= splat_int(low)) & (number <= splat_int(high)) ? x : other;
}
RL_INLINE F keep_at_least(F x, F threshold, F y) { return x < threshold ? splat(0.0f) : y; }
RL_INLINE I numbers() { return I{0, 1, 2, 3}; }

#endif

RL_INLINE float half_to_float(uint16_t h) {
  uint32_t sign = (h & 0x8000u) << 16, rest = h & 0x7fffu, word;
  float value;
  if (rest >= 0x7c00u) {
    word = 0x7f800000u | (rest & 0x3ffu) << 13;
  } else {  // exact also for subnormals: the product only moves the exponent
    word = rest << 13;
    memcpy(&value, &word, 4);
    value *= 0x1p112f;
    memcpy(&word, &value, 4);
  }
  word |= sign;
  memcpy(&value, &word, 4);
  return value;
}
RL_INLINE float bf16_to_float(uint16_t b) {
  uint32_t word = static_cast<uint32_t>(b) << 16;
  float value;
  memcpy(&value, &word, 4);
  return value;
}
RL_INLINE uint16_t float_to_bf16(float value) {  // nearest even; NaN stays NaN
  uint32_t word;
  memcpy(&word, &value, 4);
  uint32_t rounded = (word + 0x7fffu + (word >> 16 & 1u)) >> 16;
  return static_cast<uint16_t>(value != value ? (word >> 16 | 0x40u) : rounded);
}

#if RL_LEVEL < 2
RL_INLINE F load_part(const float* p, int n) {
  float lanes[LANES] = {};
  memcpy(lanes, p, 4 * n);
  return load(lanes);
}
RL_INLINE void store_part(float* p, F x, int n) {
  float lanes[LANES];
  store(lanes, x);
  memcpy(p, lanes, 4 * n);
}
RL_INLINE F load_bf16_part(const uint16_t* p, int n) {
  uint16_t lanes[LANES] = {};
  memcpy(lanes, p, 2 * n);
  return load_bf16(lanes);
}
#endif
#if RL_LEVEL == 0
RL_INLINE F load_half(const uint16_t* p) {
  return F{half_to_float(p[0]), half_to_float(p[1]), half_to_float(p[2]), half_to_float(p[3])};
}
#endif

// 32-bit lanes of two bf16: the lower one and the higher one.
RL_INLINE void load_pairs(const void* p, F& even, F& odd) {
  I words = load_int(p);
  even = bits(words << 16);
  odd = bits(words & static_cast<int>(0xffff0000u));
}

RL_INLINE bool any_above(F x, float least) {
#if RL_LEVEL == 2
  return _mm512_cmp_ps_mask(x, splat(least), _CMP_GT_OQ) != 0;
#elif RL_LEVEL == 1
  return _mm256_movemask_ps(_mm256_cmp_ps(x, splat(least), _CMP_GT_OQ)) != 0;
#else
  return largest(x) > least;
#endif
}

// y * 2^n where that is a normal number and x >= threshold, else 0; whole: n as a float.
RL_INLINE F scaled_if(F y, F whole, I n, F x, F threshold) {
#if RL_LEVEL == 2
  (void)n;
  return _mm512_maskz_scalef_ps(_mm512_cmp_ps_mask(x, threshold, _CMP_NLT_UQ), y, whole);
#else
  (void)whole;
  return keep_at_least(x, threshold, y * bits((n + 127) << 23));
#endif
}

// e^x of N vectors. Exactly 1 at 0 and exactly 0 below -87.3 (so also at -inf); saturates above 88.3; NaN stays NaN. Cephes'
// expf polynomial on [-ln2/2, ln2/2]; error below 2 units in the last place. IS_SMALL: no x is above 88.3 (softmax).
// Side by side, because one exponential is a chain of twenty operations.
template <int N, bool IS_SMALL = false>
RL_INLINE void exp(F (&x)[N]) {
  constexpr float TERMS[] = {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f};
  const F low = splat(-87.3f);
  F r[N], whole[N], p[N];
  I n[N];
#pragma GCC unroll 8
  for (int i = 0; i < N; i++) {
    r[i] = max(low, x[i]);
    if constexpr (!IS_SMALL) r[i] = min(splat(88.3f), r[i]);
  }
#pragma GCC unroll 8
  for (int i = 0; i < N; i++) n[i] = round_int(r[i] * splat(1.44269504088896341f));
#pragma GCC unroll 8
  for (int i = 0; i < N; i++) whole[i] = to_float(n[i]);
#pragma GCC unroll 8
  for (int i = 0; i < N; i++) r[i] = fma(whole[i], splat(-0.693359375f), r[i]);
#pragma GCC unroll 8
  for (int i = 0; i < N; i++) r[i] = fma(whole[i], splat(2.12194440e-4f), r[i]);
#pragma GCC unroll 8
  for (int i = 0; i < N; i++) p[i] = splat(1.9875691500e-4f);
#pragma GCC unroll 8
  for (const float term : TERMS)
#pragma GCC unroll 8
    for (int i = 0; i < N; i++) p[i] = fma(p[i], r[i], splat(term));
#pragma GCC unroll 8
  for (int i = 0; i < N; i++) p[i] = fma(p[i] * r[i], r[i], r[i]) + splat(1.0f);
#pragma GCC unroll 8
  for (int i = 0; i < N; i++) x[i] = scaled_if(p[i], whole[i], n[i], x[i], low);
}
RL_INLINE F exp(F x) {
  F one[1] = {x};
  exp<1>(one);
  return one[0];
}

}  // namespace
}  // namespace ridgeline
