// Blocks of linear.cpp that multiply f32 activations: f32, f16, bf16 and float8 weights. Included by linear.cpp only.
#pragma once
#include "block.h"

namespace ridgeline::RL_ISA {
namespace {

RL_INLINE F load_element(const float* p) { return load(p); }
RL_INLINE F load_element(const uint16_t* p) { return load_half(p); }

// f32, or f16 (Element uint16_t).
template <typename Element, int R, int T, bool FETCH>
RL_INLINE void dot_columns(const Reads& from, const uint8_t* const (&tile)[T], const int (&lane)[T], F (&out)[R][T]) {
  F even[R][T] = {}, odd[R][T] = {};
  const float* x = from.x;
  int64_t k = 0;
  for (; k + 1 < from.columns; k += 2) {
    F first_weight[T], second_weight[T];
#pragma GCC unroll 12
    for (int t = 0; t < T; t++) {
      const Element* w = reinterpret_cast<const Element*>(tile[t]) + k * 16 + lane[t];
      first_weight[t] = load_element(w);
      second_weight[t] = load_element(w + 16);
    }
    fetch<FETCH>(tile[0] + k * 16 * sizeof(Element));
    if constexpr (sizeof(Element) == 4) fetch<FETCH>(tile[0] + k * 64 + 64);
#pragma GCC unroll 12
    for (int r = 0; r < R; r++) {
      F a = splat(x[r * from.stride + k]), b = splat(x[r * from.stride + k + 1]);
#pragma GCC unroll 12
      for (int t = 0; t < T; t++) {
        even[r][t] = fma(a, first_weight[t], even[r][t]);
        odd[r][t] = fma(b, second_weight[t], odd[r][t]);
      }
    }
  }
#pragma GCC unroll 12
  for (int r = 0; r < R; r++) {
#pragma GCC unroll 12
    for (int t = 0; t < T; t++) {
      if (k < from.columns) {
        const Element* w = reinterpret_cast<const Element*>(tile[t]) + k * 16 + lane[t];
        even[r][t] = fma(splat(x[r * from.stride + k]), load_element(w), even[r][t]);
      }
      out[r][t] = even[r][t] + odd[r][t];
    }
  }
}

template <int R, int T, bool FETCH>
RL_INLINE void dot_bf16(const Reads& from, const uint8_t* const (&tile)[T], const int (&lane)[T], F (&out)[R][T]) {
  F even[R][T] = {}, odd[R][T] = {};
  const float* x = from.x;
  int64_t k = 0;
  for (; k + 1 < from.columns; k += 2) {
    F first_weight[T], second_weight[T];
#pragma GCC unroll 12
    for (int t = 0; t < T; t++) load_pairs(tile[t] + k * 32 + lane[t] * 4, first_weight[t], second_weight[t]);
    fetch<FETCH>(tile[0] + k * 32);
#pragma GCC unroll 12
    for (int r = 0; r < R; r++) {
      F a = splat(x[r * from.stride + k]), b = splat(x[r * from.stride + k + 1]);
#pragma GCC unroll 12
      for (int t = 0; t < T; t++) {
        even[r][t] = fma(a, first_weight[t], even[r][t]);
        odd[r][t] = fma(b, second_weight[t], odd[r][t]);
      }
    }
  }
#pragma GCC unroll 12
  for (int r = 0; r < R; r++) {
#pragma GCC unroll 12
    for (int t = 0; t < T; t++) {
      if (k < from.columns) {
        F w, none;
        load_pairs(tile[t] + k * 32 + lane[t] * 4, w, none);
        even[r][t] = fma(splat(x[r * from.stride + k]), w, even[r][t]);
      }
      out[r][t] = even[r][t] + odd[r][t];
    }
  }
}

// Column j of four as a float. Without subnormal arithmetic, which is slow: those of the eight bits are a difference of two
// normal numbers. Infinity and NaN are refused where weights are loaded.
template <int KIND>
RL_INLINE F float8(I words, int j) {
  constexpr int SHIFT = KIND == RL_E4M3 ? 20 : 21, BIAS = (KIND == RL_E4M3 ? 120 : 112) << 23;
  const I code = words >> (8 * j), size = (code & 127) << SHIFT, sign = code << 24 & static_cast<int>(0x80000000u);
  const F normal = bits(size + BIAS), small = bits(size + (BIAS + (1 << 23))) - bits(splat_int(BIAS + (1 << 23)));
  const I is_small = size < splat_int(1 << 23);
  return bits(((I)small & is_small) | ((I)normal & ~is_small) | sign);
}

// Two sums (even k, odd k) for each stretch of columns under one scale.
template <int KIND, int R, int T, bool FETCH>
RL_INLINE void dot_float8(const Reads& from, const Part& part, int64_t unit, const uint8_t* const (&tile)[T],
                          const int (&lane)[T], F (&out)[R][T]) {
  const int by = option_of(part.weight->format);
  const uint8_t* behind = static_cast<const uint8_t*>(part.weight->data) + part.tiles * part.tile_bytes;
  const float* scales = reinterpret_cast<const float*>(behind);
  const int64_t across = (from.columns + RL_EDGE - 1) / RL_EDGE, stretch = by == UNIT_BLOCK ? RL_EDGE : from.columns;
#pragma GCC unroll 12
  for (int r = 0; r < R; r++)
#pragma GCC unroll 4
    for (int t = 0; t < T; t++) out[r][t] = splat(0.0f);
  for (int64_t begin = 0; begin < from.columns; begin += stretch) {
    const int64_t end = begin + stretch < from.columns ? begin + stretch : from.columns;
    F even[R][T] = {}, odd[R][T] = {};
    for (int64_t k = begin; k < end; k += 4) {
      const int count = end - k < 4 ? static_cast<int>(end - k) : 4;
      fetch<FETCH>(tile[0] + k * 16);
#pragma GCC unroll 4
      for (int j = 0; j < 4; j++) {
        if (j == count) break;
#pragma GCC unroll 4
        for (int t = 0; t < T; t++) {
          F weight = float8<KIND>(load_int(tile[t] + k * 16 + lane[t] * 4), j);
#pragma GCC unroll 12
          for (int r = 0; r < R; r++) {
            F& sum = j % 2 ? odd[r][t] : even[r][t];
            sum = fma(splat(from.x[r * from.stride + k + j]), weight, sum);
          }
        }
      }
    }
#pragma GCC unroll 4
    for (int t = 0; t < T; t++) {
      const int64_t row = (unit + t) * LANES;
      F scale = by == UNIT_ROW      ? load(scales + row)
                : by == UNIT_TENSOR ? splat(scales[0])
                                    : splat(row < part.weight->rows ? scales[row / RL_EDGE * across + begin / RL_EDGE] : 0);
#pragma GCC unroll 12
      for (int r = 0; r < R; r++) out[r][t] = fma(scale, even[r][t] + odd[r][t], out[r][t]);
    }
  }
}

}  // namespace
}  // namespace ridgeline::RL_ISA
