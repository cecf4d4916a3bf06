// Exact dots of 4-, 5- and 6-bit weights with the int8 lanes of a panel (quantise.h), and what a stored block multiplies
// them by. quads() unfolds four weights a lane, unsigned; one dot body per instruction set serves every format.
// V lanes of a panel (rows x planes), T units of LANES weight rows. Included by linear.cpp only.
#pragma once
#include "quantise.h"

namespace ridgeline::RL_ISA {
namespace {

template <int V>
RL_INLINE int32_t offset_of(const uint8_t* q, int v) {
  return reinterpret_cast<const int32_t*>(q)[9 * V + v];
}
template <int V>
RL_INLINE float scale_of(const uint8_t* q, int v) {
  return reinterpret_cast<const float*>(q)[8 * V + v];
}

// How formats unfold. TOP: largest weight; ZERO: the weight that means 0 (what the panel's sums undo).
constexpr int top_of(int format) { return format == RL_Q6_K ? 63 : format == RL_Q5_0 ? 31 : 15; }
constexpr int zero_of(int format) { return format == RL_Q6_K ? 32 : format == RL_Q5_0 ? 16 : format == RL_Q4_0 ? 8 : 0; }

// Weights 4 j .. 4 j + 3 of a group, one a byte. nibbles, high: of the group, at the unit's first lane (pack.cpp).
template <int FORMAT>
RL_INLINE I quads(const uint8_t* nibbles, const uint8_t* high, int j) {
  I both = load_int(nibbles + 64 * (j >> 1));
  I low = (j & 1 ? both >> 4 : both) & 0x0f0f0f0f;
  if constexpr (FORMAT == RL_Q5_0) {
    I bits = load_int(high);
    low |= (j < 4 ? bits << (4 - j) : bits >> (j - 4)) & 0x10101010;
  } else if constexpr (FORMAT == RL_Q6_K) {
    I pairs = load_int(high + 64 * (j >> 2));
    const int at = 2 * (j & 3);
    low |= (at < 4 ? pairs << (4 - at) : pairs >> (at - 4)) & 0x30303030;
  }
  return low;
}

#if RL_LEVEL == 2

// GCC 12 does not fold a broadcast into vpdpbusd by itself.
RL_INLINE void dot4(I& sum, I weights, const uint8_t* q) {
  typedef int Four __attribute__((may_alias));
  asm("vpdpbusd %1%{1to16%}, %2, %0" : "+v"(sum) : "m"(*reinterpret_cast<const Four*>(q)), "v"(weights));
}

// dot[v][t] = start[v] + weights 4 FIRST .. 4 LAST - 1 of the group times the activations.
template <int FORMAT, int V, int T, int FIRST, int LAST>
RL_INLINE void dot_quads(const uint8_t* const (&nibbles)[T], const uint8_t* const (&high)[T], const uint8_t* q,
                         const int32_t (&start)[16], F (&dot)[V][T]) {
  I total[V][T];
#pragma GCC unroll 12
  for (int v = 0; v < V; v++)
#pragma GCC unroll 4
    for (int t = 0; t < T; t++) total[v][t] = zero_of(FORMAT) ? splat_int(start[v]) : splat_int(0);
#pragma GCC unroll 8
  for (int j = FIRST; j < LAST; j++) {
#pragma GCC unroll 4
    for (int t = 0; t < T; t++) {
      I weights = quads<FORMAT>(nibbles[t], high[t], j);
#pragma GCC unroll 12
      for (int v = 0; v < V; v++) dot4(total[v][t], weights, q + (j * V + v) * 4);
    }
  }
#pragma GCC unroll 12
  for (int v = 0; v < V; v++)
#pragma GCC unroll 4
    for (int t = 0; t < T; t++) dot[v][t] = to_float(total[v][t]);
}

#elif RL_LEVEL == 1

RL_INLINE __m256i broadcast4(const uint8_t* q) {
  int four;
  memcpy(&four, q, 4);
  return _mm256_set1_epi32(four);
}

// 16-bit sums hold 32767 / (2 * 128 * TOP) products of a lane before they must be widened.
template <int FORMAT, int V, int T, int FIRST, int LAST>
RL_INLINE void dot_quads(const uint8_t* const (&nibbles)[T], const uint8_t* const (&high)[T], const uint8_t* q,
                         const int32_t (&start)[16], F (&dot)[V][T]) {
  constexpr int NARROW = top_of(FORMAT) == 63 ? 2 : top_of(FORMAT) == 31 ? 4 : 8;
  __m256i total[V][T];
#pragma GCC unroll 12
  for (int v = 0; v < V; v++)
#pragma GCC unroll 4
    for (int t = 0; t < T; t++) total[v][t] = _mm256_set1_epi32(zero_of(FORMAT) ? start[v] : 0);
#pragma GCC unroll 4
  for (int begin = FIRST; begin < LAST; begin += NARROW) {
    __m256i narrow[V][T] = {};
#pragma GCC unroll 8
    for (int j = begin; j < begin + NARROW; j++) {
      __m256i weights[T];
#pragma GCC unroll 4
      for (int t = 0; t < T; t++) weights[t] = (__m256i)quads<FORMAT>(nibbles[t], high[t], j);
#pragma GCC unroll 12
      for (int v = 0; v < V; v++) {
        __m256i a = broadcast4(q + (j * V + v) * 4);
#pragma GCC unroll 4
        for (int t = 0; t < T; t++) narrow[v][t] = _mm256_add_epi16(narrow[v][t], _mm256_maddubs_epi16(weights[t], a));
      }
    }
#pragma GCC unroll 12
    for (int v = 0; v < V; v++)
#pragma GCC unroll 4
      for (int t = 0; t < T; t++)
        total[v][t] = _mm256_add_epi32(total[v][t], _mm256_madd_epi16(narrow[v][t], _mm256_set1_epi16(1)));
  }
#pragma GCC unroll 12
  for (int v = 0; v < V; v++)
#pragma GCC unroll 4
    for (int t = 0; t < T; t++) dot[v][t] = _mm256_cvtepi32_ps(total[v][t]);
}

#else

// All partial sums stay below 2^24, so float arithmetic is exact here; SSE2 has no 32-bit multiply.
template <int FORMAT, int V, int T, int FIRST, int LAST>
RL_INLINE void dot_quads(const uint8_t* const (&nibbles)[T], const uint8_t* const (&high)[T], const uint8_t* q,
                         const int32_t (&start)[16], F (&dot)[V][T]) {
#pragma GCC unroll 12
  for (int v = 0; v < V; v++)
#pragma GCC unroll 4
    for (int t = 0; t < T; t++) dot[v][t] = splat(zero_of(FORMAT) ? static_cast<float>(start[v]) : 0.0f);
  const int8_t* a = reinterpret_cast<const int8_t*>(q);
#pragma GCC unroll 8
  for (int j = FIRST; j < LAST; j++)
#pragma GCC unroll 4
    for (int t = 0; t < T; t++) {
      I weights = quads<FORMAT>(nibbles[t], high[t], j);
#pragma GCC unroll 4
      for (int b = 0; b < 4; b++) {
        F one = to_float(weights >> (8 * b) & 255);
#pragma GCC unroll 12
        for (int v = 0; v < V; v++) dot[v][t] += one * splat(static_cast<float>(a[(j * V + v) * 4 + b]));
      }
    }
}

#endif

// -32 * (sum of activations 0..15 of a group, and of 16..31) of every lane of the panel: q6_k scales sixteen at a time.
template <int V>
RL_INLINE void half_offsets(const uint8_t* q, int32_t (&first_half)[16], int32_t (&second_half)[16]) {
#if RL_LEVEL == 2
  __m512i sums = _mm512_setzero_si512();
#pragma GCC unroll 4
  for (int j = 0; j < 4; j++)
    sums = _mm512_dpbusd_epi32(sums, _mm512_set1_epi8(32), _mm512_maskz_loadu_epi32(first(V), q + j * V * 4));
  const __m512i whole = _mm512_srai_epi32(_mm512_maskz_loadu_epi32(first(V), q + 9 * V * 4), 2);
  _mm512_storeu_si512(first_half, _mm512_sub_epi32(_mm512_setzero_si512(), sums));
  _mm512_storeu_si512(second_half, _mm512_add_epi32(whole, sums));
  asm("" : "+m"(first_half), "+m"(second_half));  // broadcasts from memory, not by permutation
#else
  const int8_t* a = reinterpret_cast<const int8_t*>(q);
  for (int v = 0; v < V; v++) {
    int sum = 0;
    for (int j = 0; j < 4; j++)
      for (int b = 0; b < 4; b++) sum += a[(j * V + v) * 4 + b];
    first_half[v] = -32 * sum;
    second_half[v] = offset_of<V>(q, v) / 4 + 32 * sum;
  }
#endif
}

// -ZERO * sum of activations of every lane of the panel.
template <int FORMAT, int V>
RL_INLINE void offsets(const uint8_t* q, int32_t (&start)[16]) {
  for (int v = 0; v < V; v++) start[v] = offset_of<V>(q, v) / 128 * zero_of(FORMAT);
}

// d * scale and dmin * minimum of group `group` of a q4_k block, LANES rows at once (6-bit fields: formats/q4_k.py).
RL_INLINE void q4_k_factors(const uint8_t* block, int lane, int group, F& scale, F& least) {
  const uint16_t* halves = reinterpret_cast<const uint16_t*>(block) + lane;
  const uint8_t* words = block + Q4_K_SCALES + lane * 4;
  const I low = load_int(words), high = load_int(words + 64);
  const int at = 8 * (group & 3);
  I s, m;
  if (group < 4) {
    s = low >> at & 63;
    m = high >> at & 63;
  } else {
    const I rest = load_int(words + 128) >> at;
    s = (rest & 15) | (low >> at >> 2 & 0x30);
    m = (rest >> 4 & 15) | (high >> at >> 2 & 0x30);
  }
  scale = load_half(halves) * to_float(s);
  least = load_half(halves + 16) * to_float(m);
}

// d * scale of half `half` of group `group` of a q6_k block.
RL_INLINE F q6_k_factor(F d, const uint8_t* scales, int group, int half) {
  const int at = 16 * (group & 1) + 8 * half;
  return d * to_float(load_int(scales + 64 * (group >> 1)) << (24 - at) >> 24);
}

}  // namespace
}  // namespace ridgeline::RL_ISA
