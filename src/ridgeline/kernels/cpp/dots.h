// Exact dots of stored weights with the int8 planes of a panel (quantise.h), and what a stored block multiplies them by.
// quads() unfolds four weights a lane, unsigned; one body per instruction set serves every format.
// R rows of a panel, T units of LANES weight rows. Included by linear.cpp only.
#pragma once
#include "quantise.h"

namespace ridgeline::RL_ISA {
namespace {

// How formats unfold. top: largest weight; zero: the weight that means 0 (what the panel's sums undo).
constexpr int top_of(int format) {
  return format == RL_Q8_0 ? 255 : format == RL_Q6_K ? 63 : format == RL_Q5_0 ? 31 : 15;
}
constexpr int zero_of(int format) {
  return format == RL_Q8_0 ? 128 : format == RL_Q6_K ? 32 : format == RL_Q5_0 ? 16 : format == RL_Q4_0 ? 8 : 0;
}

// Weights 4 j .. 4 j + 3 of a group, one a byte. low, high: of the group, at the unit's first lane (pack.cpp).
template <int FORMAT>
RL_INLINE I quads(const uint8_t* nibbles, const uint8_t* high, int j) {
  if constexpr (FORMAT == RL_Q8_0) return load_int(nibbles + 64 * j);
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

// What a group of a panel holds, for all its R rows.
template <int R>
RL_INLINE const float* word_of(const uint8_t* q, Word word) {
  return reinterpret_cast<const float*>(q + (32 + 4 * word) * R);
}
template <int R>
RL_INLINE const int32_t* integers_of(const uint8_t* q, Word word) {
  return reinterpret_cast<const int32_t*>(q + (32 + 4 * word) * R);
}

template <int R>
RL_INLINE bool any_kept(const uint8_t* q) {
  const int32_t* kept = integers_of<R>(q, KEPT);
#if RL_LEVEL == 2
  if constexpr (R > 1) {
    const __m512i all = _mm512_maskz_loadu_epi32(first(R), kept);
    return _mm512_test_epi32_mask(all, all);
  }
#endif
  int32_t any = 0;
#pragma GCC unroll 4
  for (int r = 0; r < R; r++) any |= kept[r];
  return any;
}

// Where sums of the dots with weights 4 FIRST .. 4 LAST - 1 of a group begin: what undoes the format's zero; for one plane
// in units of high, and on START.
template <bool BOTH, int FORMAT, int R, int FIRST, int LAST>
RL_INLINE void begin_sums(const uint8_t* q, int32_t (&begin)[16]) {
  constexpr int ZERO = zero_of(FORMAT), SHIFT_BY = ZERO == 128 ? 7 : ZERO == 32 ? 5 : ZERO == 16 ? 4 : 3;
  const int32_t *whole = integers_of<R>(q, BEGIN), *half = integers_of<R>(q, HALF);
#if RL_LEVEL == 2
  __m512i sum = _mm512_sub_epi32(_mm512_maskz_loadu_epi32(first(R), whole), _mm512_set1_epi32(START));
  const __m512i front = _mm512_maskz_loadu_epi32(first(R), half);
  if constexpr (LAST == 4) sum = _mm512_sub_epi32(_mm512_setzero_si512(), front);
  if constexpr (FIRST == 4) sum = _mm512_add_epi32(sum, front);
  sum = BOTH ? _mm512_slli_epi32(sum, SHIFT_BY)
             : _mm512_add_epi32(_mm512_srai_epi32(sum, 7 - SHIFT_BY), _mm512_set1_epi32(START));
  _mm512_storeu_si512(begin, sum);
  asm("" : "+m"(begin));  // really to memory: 12 broadcasts by permutation would fill the port that dots need
#else
#pragma GCC unroll 4
  for (int r = 0; r < R; r++) {
    const int32_t sum = LAST == 4 ? -half[r] : FIRST == 4 ? whole[r] - START + half[r] : whole[r] - START;
    begin[r] = BOTH ? sum * (1 << SHIFT_BY) : (sum >> (7 - SHIFT_BY)) + START;
  }
#endif
}

#if RL_LEVEL == 2

// GCC 12 does not fold a broadcast into vpdpbusd by itself.
RL_INLINE void dot4(I& sum, I weights, const uint8_t* q) {
  typedef int Four __attribute__((may_alias));
  asm("vpdpbusd %1%{1to16%}, %2, %0" : "+v"(sum) : "m"(*reinterpret_cast<const Four*>(q)), "v"(weights));
}

// total[r][t] += weights 4 FIRST .. 4 LAST - 1 of the group times those of a plane.
template <int FORMAT, int R, int T, int FIRST, int LAST>
RL_INLINE void add_dots(const uint8_t* const (&nibbles)[T], const uint8_t* const (&high)[T], const uint8_t* plane,
                        I (&total)[R][T]) {
#pragma GCC unroll 8
  for (int j = FIRST; j < LAST; j++) {
#pragma GCC unroll 4
    for (int t = 0; t < T; t++) {
      const I weights = quads<FORMAT>(nibbles[t], high[t], j);
#pragma GCC unroll 12
      for (int r = 0; r < R; r++) dot4(total[r][t], weights, plane + r * RL_GROUP + j * 4);
    }
  }
}

// Both planes of few rows, unfolded once, in sums that do not wait for each other.
template <int FORMAT, int R, int T, int FIRST, int LAST>
RL_INLINE void add_both(const uint8_t* const (&nibbles)[T], const uint8_t* const (&high)[T], const uint8_t* q,
                        const uint8_t* low, I (&total)[R][T], I (&rest)[R][T]) {
#pragma GCC unroll 8
  for (int j = FIRST; j < LAST; j++) {
#pragma GCC unroll 4
    for (int t = 0; t < T; t++) {
      const I weights = quads<FORMAT>(nibbles[t], high[t], j);
#pragma GCC unroll 4
      for (int r = 0; r < R; r++) {
        dot4(total[r][t], weights, q + r * RL_GROUP + j * 4);
        dot4(rest[r][t], weights, low + r * RL_GROUP + j * 4);
      }
    }
  }
}

#elif RL_LEVEL == 1

RL_INLINE __m256i broadcast4(const uint8_t* q) {
  int four;
  memcpy(&four, q, 4);
  return _mm256_set1_epi32(four);
}

// 16-bit sums hold 32767 / (2 * 128 * TOP) products of a lane before they must be widened. Of eight bits not even one:
// even and odd bytes apart.
template <int FORMAT, int R, int T, int FIRST, int LAST>
RL_INLINE void add_dots(const uint8_t* const (&nibbles)[T], const uint8_t* const (&high)[T], const uint8_t* plane,
                        I (&total)[R][T]) {
  if constexpr (top_of(FORMAT) == 255) {
#pragma GCC unroll 8
    for (int j = FIRST; j < LAST; j++) {
      __m256i even[T], odd[T];
#pragma GCC unroll 4
      for (int t = 0; t < T; t++) {
        const __m256i weights = (__m256i)quads<FORMAT>(nibbles[t], high[t], j);
        even[t] = _mm256_and_si256(weights, _mm256_set1_epi16(255));
        odd[t] = _mm256_srli_epi16(weights, 8);
      }
#pragma GCC unroll 4
      for (int r = 0; r < R; r++) {
        const __m256i both = broadcast4(plane + r * RL_GROUP + j * 4);
        const __m256i a = _mm256_srai_epi16(_mm256_slli_epi16(both, 8), 8), b = _mm256_srai_epi16(both, 8);
#pragma GCC unroll 4
        for (int t = 0; t < T; t++)
          total[r][t] += (I)_mm256_add_epi32(_mm256_madd_epi16(even[t], a), _mm256_madd_epi16(odd[t], b));
      }
    }
  } else {
    constexpr int NARROW = top_of(FORMAT) == 63 ? 2 : top_of(FORMAT) == 31 ? 4 : 8;
    constexpr int STEP = NARROW < LAST - FIRST ? NARROW : LAST - FIRST;
#pragma GCC unroll 4
    for (int begin = FIRST; begin < LAST; begin += STEP) {
      __m256i narrow[R][T] = {};
#pragma GCC unroll 8
      for (int j = begin; j < begin + STEP; j++) {
        __m256i weights[T];
#pragma GCC unroll 4
        for (int t = 0; t < T; t++) weights[t] = (__m256i)quads<FORMAT>(nibbles[t], high[t], j);
#pragma GCC unroll 4
        for (int r = 0; r < R; r++) {
          const __m256i a = broadcast4(plane + r * RL_GROUP + j * 4);
#pragma GCC unroll 4
          for (int t = 0; t < T; t++) narrow[r][t] = _mm256_add_epi16(narrow[r][t], _mm256_maddubs_epi16(weights[t], a));
        }
      }
#pragma GCC unroll 4
      for (int r = 0; r < R; r++)
#pragma GCC unroll 4
        for (int t = 0; t < T; t++) total[r][t] += (I)_mm256_madd_epi16(narrow[r][t], _mm256_set1_epi16(1));
    }
  }
}

#else

// All sums of one plane stay below 2^24, so float arithmetic is exact here; SSE2 has no 32-bit multiply.
template <int FORMAT, int R, int T, int FIRST, int LAST>
RL_INLINE void add_dots(const uint8_t* const (&nibbles)[T], const uint8_t* const (&high)[T], const uint8_t* plane,
                        I (&total)[R][T]) {
  F dot[R][T] = {};
  const int8_t* a = reinterpret_cast<const int8_t*>(plane);
#pragma GCC unroll 8
  for (int j = FIRST; j < LAST; j++)
#pragma GCC unroll 4
    for (int t = 0; t < T; t++) {
      const I weights = quads<FORMAT>(nibbles[t], high[t], j);
#pragma GCC unroll 4
      for (int b = 0; b < 4; b++) {
        const F one = to_float(weights >> (8 * b) & 255);
#pragma GCC unroll 4
        for (int r = 0; r < R; r++) dot[r][t] += one * splat(static_cast<float>(a[r * RL_GROUP + j * 4 + b]));
      }
    }
#pragma GCC unroll 4
  for (int r = 0; r < R; r++)
#pragma GCC unroll 4
    for (int t = 0; t < T; t++) total[r][t] += __builtin_convertvector(dot[r][t], I);
}

#endif

// out += scale * SCALE * (weights 4 FIRST .. 4 LAST - 1 of a group times both planes, or high alone). The sum is an exact
// integer, the product with SCALE is rounded, then added by one fma: so a low plane of zeros, wanted by a neighbour, changes
// no bit. high alone: the sum's bits are those of the float 1.5 * 2^23 + sum, and one fmsub makes SCALE * sum of it.
template <bool BOTH, int FORMAT, int R, int T, int FIRST, int LAST>
RL_INLINE void add_sums(const uint8_t* const (&nibbles)[T], const uint8_t* const (&high)[T], const uint8_t* q,
                        const uint8_t* low, const F (&scale)[T], F (&out)[R][T]) {
  const float *steps = word_of<R>(q, SCALE), *shifts = word_of<R>(q, SHIFT);
  int32_t made[16];
  const int32_t* begin = made;
  if constexpr (zero_of(FORMAT) == 128 && !BOTH)
    begin = integers_of<R>(q, BEGIN);
  else if constexpr (zero_of(FORMAT) != 0)
    begin_sums<BOTH, FORMAT, R, FIRST, LAST>(q, made);
  I total[R][T];
#pragma GCC unroll 12
  for (int r = 0; r < R; r++)
#pragma GCC unroll 4
    for (int t = 0; t < T; t++)
      total[r][t] = BOTH ? splat_int(0) : splat_int(zero_of(FORMAT) ? begin[r] : START);
  constexpr bool FEW = RL_LEVEL == 2 && BOTH && R * T <= 4;
#if RL_LEVEL == 2
  if constexpr (FEW) {
    I rest[R][T];
#pragma GCC unroll 4
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
      for (int t = 0; t < T; t++) rest[r][t] = splat_int(zero_of(FORMAT) ? begin[r] : 0);
    add_both<FORMAT, R, T, FIRST, LAST>(nibbles, high, q, low, total, rest);
#pragma GCC unroll 4
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
      for (int t = 0; t < T; t++) total[r][t] = (total[r][t] << 7) + rest[r][t];
  }
#endif
  if constexpr (!FEW) add_dots<FORMAT, R, T, FIRST, LAST>(nibbles, high, q, total);
  if constexpr (BOTH && !FEW) {
#pragma GCC unroll 12
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
      for (int t = 0; t < T; t++) {
        total[r][t] <<= 7;
        if (zero_of(FORMAT)) total[r][t] += splat_int(begin[r]);
      }
    add_dots<FORMAT, R, T, FIRST, LAST>(nibbles, high, low, total);
  }
#pragma GCC unroll 12
  for (int r = 0; r < R; r++)
#pragma GCC unroll 4
    for (int t = 0; t < T; t++) {
      F sum;
      if constexpr (BOTH)
        sum = to_float(total[r][t]) * splat(0x1p-7f) * splat(steps[r]);
      else if constexpr (RL_LEVEL == 2)
        sum = fmsub(bits(total[r][t]), splat(steps[r]), splat(shifts[r]));
      else
        sum = to_float(total[r][t]) * splat(steps[r]);
      out[r][t] = fma(scale[t], sum, out[r][t]);
    }
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
