// Blocks of linear.cpp that multiply quantised activations: formats of groups and affine kinds. Included by linear.cpp only.
#pragma once
#include "block.h"
#include "dots.h"

namespace ridgeline::RL_ISA {
namespace {

// out += minima * what the group's activations sum up to.
template <int R, int T>
RL_INLINE void add_least(const F (&least)[T], const uint8_t* q, F (&out)[R][T]) {
  const float* sums = word_of<R>(q, WEIGHTED);
#pragma GCC unroll 12
  for (int r = 0; r < R; r++)
#pragma GCC unroll 4
    for (int t = 0; t < T; t++) out[r][t] = fma(least[t], splat(sums[r]), out[r][t]);
}

// One group of a format whose groups have one scale. tile: at the unit's tile; q, low: the panel's group.
template <bool BOTH, int FORMAT, int R, int T, bool FETCH>
RL_INLINE void add_group(const uint8_t* const (&tile)[T], const int (&lane)[T], int64_t g, int64_t groups,
                         const uint8_t* q, const uint8_t* low, F (&out)[R][T]) {
  constexpr int BODY = FORMAT == RL_Q8_0 ? Q8_0_BODY : FORMAT == RL_Q5_0 ? Q5_0_BODY : Q4_0_BODY;
  constexpr int STORED = FORMAT == RL_Q4_1 ? 320 : FORMAT == RL_Q4_K ? Q4_K_BODY / 8 : BODY + 32;
  const int64_t block = FORMAT == RL_Q4_K ? (g >> 3) * Q4_K_BODY : g * 320;
  const int64_t scales = FORMAT == RL_Q4_1 || FORMAT == RL_Q4_K ? block : pair_scales(g, BODY);
  const int64_t body = FORMAT == RL_Q4_1   ? block + 64
                       : FORMAT == RL_Q4_K ? block + Q4_K_NIBBLES + (g & 7) * Q4_K_GROUP
                                           : pair_body(g, groups, BODY);
  const uint8_t *w[T], *nibbles[T];
  F scale[T], least[T];
#pragma GCC unroll 4
  for (int t = 0; t < T; t++) {
    w[t] = tile[t] + body + lane[t] * 4;
    nibbles[t] = FORMAT == RL_Q5_0 ? w[t] + Q5_0_NIBBLES : w[t];
    const uint16_t* halves = reinterpret_cast<const uint16_t*>(tile[t] + scales) + lane[t];
    if constexpr (FORMAT == RL_Q4_K) {
      q4_k_factors(tile[t] + block, lane[t], static_cast<int>(g & 7), scale[t], least[t]);
      least[t] = -least[t];
    } else {
      scale[t] = load_half(halves);
      if constexpr (FORMAT == RL_Q4_1) least[t] = load_half(halves + 16);
    }
  }
#pragma GCC unroll 9
  for (int line = 0; line < STORED; line += 64) fetch<FETCH>(tile[0] + body + line);
  add_sums<BOTH, FORMAT, R, T, 0, 8>(nibbles, w, q, low, scale, out);
  if constexpr (FORMAT == RL_Q4_1 || FORMAT == RL_Q4_K) add_least<R, T>(least, q, out);
}

// One group of q6_k: two scales, the first sixteen weights first.
template <bool BOTH, int R, int T, bool FETCH>
RL_INLINE void add_halves(const uint8_t* const (&tile)[T], const int (&lane)[T], int64_t g, int64_t groups,
                          const uint8_t* q, const uint8_t* low, F (&out)[R][T]) {
  const int64_t block = g >> 3, body = pair_body(block, groups >> 3, Q6_K_BODY);
  const int group = static_cast<int>(g & 7);
  const uint8_t *nibbles[T], *high[T];
  F scale[T], d[T];
#pragma GCC unroll 4
  for (int t = 0; t < T; t++) {
    d[t] = load_half(reinterpret_cast<const uint16_t*>(tile[t] + pair_scales(block, Q6_K_BODY)) + lane[t]);
    nibbles[t] = tile[t] + body + Q6_K_NIBBLES + group * Q6_K_GROUP + lane[t] * 4;
    high[t] = nibbles[t] + Q6_K_HIGH;
  }
#pragma GCC unroll 9
  for (int line = 0; line < Q6_K_GROUP + 64; line += 64) fetch<FETCH>(nibbles[0] + line);
#pragma GCC unroll 4
  for (int t = 0; t < T; t++) scale[t] = q6_k_factor(d[t], tile[t] + body + lane[t] * 4, group, 0);
  add_sums<BOTH, RL_Q6_K, R, T, 0, 4>(nibbles, high, q, low, scale, out);
#pragma GCC unroll 4
  for (int t = 0; t < T; t++) scale[t] = q6_k_factor(d[t], tile[t] + body + lane[t] * 4, group, 1);
  add_sums<BOTH, RL_Q6_K, R, T, 4, 8>(nibbles, high, q, low, scale, out);
}

template <int FORMAT, int R, int T, bool FETCH>
RL_INLINE void dot_groups(const Reads& from, const uint8_t* const (&tile)[T], const int (&lane)[T], F (&out)[R][T]) {
#pragma GCC unroll 12
  for (int r = 0; r < R; r++)
#pragma GCC unroll 4
    for (int t = 0; t < T; t++) out[r][t] = splat(0.0f);
  const int64_t groups = from.columns / RL_GROUP;
  const uint8_t *q = from.panel, *low = q + groups * (R * HIGH_BYTES);
  for (int64_t g = 0; g < groups; g++, q += R * HIGH_BYTES, low += R * LOW_BYTES) {
    if (__builtin_expect(any_kept<R>(q), 0)) {
      if constexpr (FORMAT == RL_Q6_K)
        add_halves<true, R, T, FETCH>(tile, lane, g, groups, q, low, out);
      else
        add_group<true, FORMAT, R, T, FETCH>(tile, lane, g, groups, q, low, out);
    } else {
      if constexpr (FORMAT == RL_Q6_K)
        add_halves<false, R, T, FETCH>(tile, lane, g, groups, q, low, out);
      else
        add_group<false, FORMAT, R, T, FETCH>(tile, lane, g, groups, q, low, out);
    }
  }
}

// ---- affine kinds: their parameters stand behind all tiles

RL_INLINE F load_scale(int format, const uint8_t* at) {
  if (option_of(format) == SCALE_F32) return load(reinterpret_cast<const float*>(at));
  const uint16_t* halves = reinterpret_cast<const uint16_t*>(at);
  return option_of(format) == SCALE_F16 ? load_half(halves) : load_bf16(halves);
}

// sum of scale * (code - zero) * x: per 32 columns as in add_group, the zero as q4_1's minimum.
template <int KIND, int R, int T, bool FETCH>
RL_INLINE void dot_affine(const Reads& from, const Part& part, int64_t unit, const uint8_t* const (&tile)[T],
                          const int (&lane)[T], F (&out)[R][T]) {
  constexpr int BODY = is_four(KIND) ? 256 : 512;
  constexpr int LIKE = !is_four(KIND) ? RL_Q8_0 : has_zero(KIND) ? RL_Q4_1 : RL_Q4_0;
  const int format = part.weight->format;
  const int64_t group = group_columns(format, from.columns), groups = group_count(format, from.columns);
  const int64_t row_bytes = RL_TILE_ROWS * scale_bytes(format), own = tile_parameter_bytes(format, from.columns);
  const uint8_t *scales[T], *zeros[T];
#pragma GCC unroll 4
  for (int t = 0; t < T; t++) {
    const int64_t index = (unit + t) * LANES / RL_TILE_ROWS;
    scales[t] = static_cast<const uint8_t*>(part.weight->data) + part.tiles * part.tile_bytes + index * own;
    zeros[t] = scales[t] + groups * row_bytes + lane[t];
    scales[t] += lane[t] * scale_bytes(format);
  }
#pragma GCC unroll 12
  for (int r = 0; r < R; r++)
#pragma GCC unroll 4
    for (int t = 0; t < T; t++) out[r][t] = splat(0.0f);
  const uint8_t *q = from.panel, *low = q + from.columns / RL_GROUP * (R * HIGH_BYTES);
  for (int64_t g = 0, k = 0; g < groups; g++) {
    F scale[T], least[T];
#pragma GCC unroll 4
    for (int t = 0; t < T; t++) {
      scale[t] = load_scale(format, scales[t] + g * row_bytes);
      if constexpr (has_zero(KIND)) {
        I zero = is_four(KIND) ? load_bytes(zeros[t] + (g >> 1) * RL_TILE_ROWS) >> (4 * (g & 1)) & splat_int(15)
                               : load_bytes(zeros[t] + g * RL_TILE_ROWS) - splat_int(128);
        least[t] = -(scale[t] * to_float(zero));
      }
    }
    const int64_t end = k + group < from.columns ? k + group : from.columns;
    for (; k < end; k += RL_GROUP, q += R * HIGH_BYTES, low += R * LOW_BYTES) {
      const uint8_t* w[T];
#pragma GCC unroll 4
      for (int t = 0; t < T; t++) w[t] = tile[t] + k / RL_GROUP * BODY + lane[t] * 4;
#pragma GCC unroll 8
      for (int line = 0; line < BODY; line += 64) fetch<FETCH>(w[0] + line);
      if (__builtin_expect(any_kept<R>(q), 0))
        add_sums<true, LIKE, R, T, 0, 8>(w, w, q, low, scale, out);
      else
        add_sums<false, LIKE, R, T, 0, 8>(w, w, q, low, scale, out);
      if constexpr (has_zero(KIND)) add_least<R, T>(least, q, out);
    }
  }
}

}  // namespace
}  // namespace ridgeline::RL_ISA
