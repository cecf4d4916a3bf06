// The quantised copy of f32 rows that integer linears read: two int8 planes an element (value = scale * (high + low / 128))
// and one scale per group of 32. The low plane is kept where the outliers are: in groups whose peak exceeds `outlier` times
// the row's mean magnitude, since a group's error follows its peak. Elsewhere it is zero and nobody reads it.
// Per row only, so that a row's bits never depend on its neighbours (promise 1). Eight bits everywhere cost up to 4 % of the
// largest logit on SmolLM2 (docs/findings/cpu-linear.md).
// Layout: panels of PANEL rows (the last one shorter), which are what one block of linear.cpp reads. Per panel of R rows
//   for every group: int8 high[R][32], then six words [R] (below)       56 bytes a row
//   for every group: int8 low[R][32]                                    32 bytes a row
// so that all loads of a group are one pointer and small constants, and unread planes take no room in the first cache.
// Refused: rows with NaN, infinity or magnitudes above 1e32 come out as NaN; groups below 1e-30 as zeros.
#pragma once
#include "vec.h"

namespace ridgeline {
namespace {

#if RL_LEVEL == 2
constexpr int PANEL = 12;
constexpr int START = 0x4b400000;  // the bits of 1.5 * 2^23: an integer sum begun there is, read as a float, 1.5 * 2^23 + sum
#else
constexpr int PANEL = 4;
constexpr int START = 0;
#endif
constexpr int HIGH_BYTES = 56, LOW_BYTES = 32;  // of a row in a group
static_assert(HIGH_BYTES + LOW_BYTES == QUANT_BYTES, "quant_stride() counts them");

// The words of a group, after the high plane. whole = 128 * high + low.
enum Word {
  SCALE,     // f32: of high; its last two bits are zero, so that three times it is exact
  SHIFT,     // f32: 1.5 * 2^23 * SCALE, exactly
  BEGIN,     // int32: START - sum of whole
  WEIGHTED,  // f32: SCALE * sum of whole / 128
  HALF,      // int32: sum of the first sixteen whole
  KEPT,      // int32: 0: low is all zeros
};

struct QuantRow {
  uint8_t *high, *low;  // of the panel
  int64_t rows, row;    // of the panel; which of them
};

RL_INLINE uint8_t* panel_at(const Step& step, int64_t offset, int64_t width, int64_t first_row) {
  return step.arena + offset + first_row * (width / RL_GROUP * QUANT_BYTES);
}

RL_INLINE QuantRow row_of_panel(const Step& step, int64_t offset, int64_t width, int64_t row, int64_t first, int64_t end) {
  const int64_t rows = end - first < PANEL ? end - first : PANEL;
  uint8_t* panel = panel_at(step, offset, width, first);
  return {panel, panel + width / RL_GROUP * HIGH_BYTES * rows, rows, row - first};
}

RL_INLINE QuantRow quant_row(const Step& step, int64_t offset, int64_t width, int64_t row, int64_t rows) {
  return row_of_panel(step, offset, width, row, row / PANEL * PANEL, rows);
}

// Likewise, where panels begin anew at row `begin` and end with row `end` (the rows of one expert).
RL_INLINE QuantRow segment_row(const Step& step, int64_t offset, int64_t width, int64_t row, int64_t begin, int64_t end) {
  return row_of_panel(step, offset, width, row, begin + (row - begin) / PANEL * PANEL, end);
}

// The quantised copy of 32 elements, written as two planes; its sums of `whole`: of all, and of the first sixteen.
struct Sums {
  int all, half;
};

#if RL_LEVEL == 2
// Four sums of four neighbours: of bytes 0-15 in lanes 0-3, of bytes 16-31 in lanes 4-7.
RL_INLINE __m256i sums_of_bytes(__m256i bytes) {
  const __m256i fours = _mm256_dpbusd_epi32(_mm256_setzero_si256(), _mm256_set1_epi8(1), bytes);
  return _mm256_add_epi32(fours, _mm256_shuffle_epi32(fours, 0x4e));
}

RL_INLINE __m256i to_bytes(I front, I back) {
  const __m128i bytes = _mm512_cvtepi32_epi8((__m512i)back);
  return _mm256_inserti128_si256(_mm256_castsi128_si256(_mm512_cvtepi32_epi8((__m512i)front)), bytes, 1);
}

RL_INLINE Sums round_group(const float* x, float inverse, bool kept, uint8_t* high, uint8_t* low) {
  const F front = load(x) * splat(inverse), back = load(x + LANES) * splat(inverse);
  __m256i sums;
  if (__builtin_expect(kept, 0)) {
    const I whole[2] = {round_int(front * splat(128.0f)), round_int(back * splat(128.0f))};
    const I top[2] = {(whole[0] + splat_int(64)) >> 7, (whole[1] + splat_int(64)) >> 7};  // -127..127
    const __m256i high_bytes = to_bytes(top[0], top[1]);
    const __m256i low_bytes = to_bytes(whole[0] - (top[0] << 7), whole[1] - (top[1] << 7));  // -64..63
    _mm256_storeu_si256((__m256i*)high, high_bytes);
    _mm256_storeu_si256((__m256i*)low, low_bytes);
    sums = _mm256_add_epi32(_mm256_slli_epi32(sums_of_bytes(high_bytes), 7), sums_of_bytes(low_bytes));
  } else {
    const __m256i bytes = to_bytes(round_int(front), round_int(back));
    _mm256_storeu_si256((__m256i*)high, bytes);
    _mm256_storeu_si256((__m256i*)low, _mm256_setzero_si256());
    sums = _mm256_slli_epi32(sums_of_bytes(bytes), 7);
  }
  sums = _mm256_add_epi32(sums, _mm256_shuffle_epi32(sums, 0xb1));
  const int half = _mm_cvtsi128_si32(_mm256_castsi256_si128(sums));
  return {half + _mm_cvtsi128_si32(_mm256_extracti128_si256(sums, 1)), half};
}
#else
RL_INLINE Sums round_group(const float* x, float inverse, bool kept, uint8_t* high, uint8_t* low) {
  constexpr int N = RL_GROUP / LANES;
  I total[2] = {splat_int(0), splat_int(0)};
#pragma GCC unroll 8
  for (int i = 0; i < N; i++) {
    const F scaled = load(x + i * LANES) * splat(inverse);
    const I whole = kept ? round_int(scaled * splat(128.0f)) : round_int(scaled) << 7;
    const I top = (whole + splat_int(64)) >> 7;  // -127..127; what is left is -64..63
    store_int8(reinterpret_cast<int8_t*>(high) + i * LANES, top);
    store_int8(reinterpret_cast<int8_t*>(low) + i * LANES, whole - (top << 7));
    total[i >= N / 2] += whole;
  }
  const int half = sum(total[0]);
  return {half + sum(total[1]), half};
}
#endif

// Columns [begin, end) of a row, both multiples of 32. Sixteen groups at a time, step by step: first all peaks, then all
// scales, then all planes, since one group by itself waits for the one number it comes down to.
RL_INLINE void quantise(const float* x, int64_t begin, int64_t end, QuantRow to, float outlier) {
  constexpr int N = RL_GROUP / LANES, GROUPS = 16;
  F magnitudes[2] = {};
  for (int64_t at = begin; at < end; at += RL_GROUP)
#pragma GCC unroll 8
    for (int i = 0; i < N; i++) magnitudes[i & 1] = magnitudes[i & 1] + abs(load(x + at + i * LANES));
  const float total = sum(magnitudes[0] + magnitudes[1]), limit = outlier * (total / static_cast<float>(end - begin));
  const bool is_finite = total < 1e38f;
  float most[GROUPS], scale[GROUPS], inverse[GROUPS], shift[GROUPS], weighted[GROUPS];
  int32_t start[GROUPS], half[GROUPS], kept[GROUPS];
  for (int64_t first = begin; first < end; first += GROUPS * RL_GROUP) {
    const int count = end - first < GROUPS * RL_GROUP ? static_cast<int>((end - first) / RL_GROUP) : GROUPS;
    for (int g = 0; g < count; g++) {
      F peak = abs(load(x + first + g * RL_GROUP));
#pragma GCC unroll 8
      for (int i = 1; i < N; i++) peak = max(abs(load(x + first + g * RL_GROUP + i * LANES)), peak);
      most[g] = largest(peak);
    }
    for (int g = count; g < GROUPS; g++) most[g] = 0.0f;
    for (int g = 0; g < GROUPS; g++) {
      const float exact = most[g] / 127.0f;
      int32_t bits_of_scale;
      memcpy(&bits_of_scale, &exact, 4);
      bits_of_scale &= ~3;
      bits_of_scale = most[g] < 1e-30f ? 0 : bits_of_scale;
      bits_of_scale = is_finite && most[g] < 1e32f ? bits_of_scale : 0x7fc00000;  // NaN
      memcpy(scale + g, &bits_of_scale, 4);
      inverse[g] = scale[g] > 0.0f ? 1.0f / scale[g] : 0.0f;
      shift[g] = 12582912.0f * scale[g];
      kept[g] = most[g] > limit;
    }
    const int64_t index = first / RL_GROUP;
    uint8_t* high = to.high + index * (HIGH_BYTES * to.rows) + to.row * RL_GROUP;
    uint8_t* low = to.low + index * (LOW_BYTES * to.rows) + to.row * RL_GROUP;
    for (int g = 0; g < count; g++, high += HIGH_BYTES * to.rows, low += LOW_BYTES * to.rows) {
      const Sums sums = round_group(x + first + g * RL_GROUP, inverse[g], kept[g], high, low);
      start[g] = START - sums.all;
      half[g] = sums.half;
      weighted[g] = scale[g] * (static_cast<float>(sums.all) * 0x1p-7f);
    }
    uint8_t* words = to.high + index * (HIGH_BYTES * to.rows) + RL_GROUP * to.rows + to.row * 4;
    for (int g = 0; g < count; g++, words += HIGH_BYTES * to.rows) {
      memcpy(words + SCALE * 4 * to.rows, scale + g, 4);
      memcpy(words + SHIFT * 4 * to.rows, shift + g, 4);
      memcpy(words + BEGIN * 4 * to.rows, start + g, 4);
      memcpy(words + WEIGHTED * 4 * to.rows, weighted + g, 4);
      memcpy(words + HALF * 4 * to.rows, half + g, 4);
      memcpy(words + KEPT * 4 * to.rows, kept + g, 4);
    }
  }
}

// Row-wise operators end with this.
RL_INLINE void finish_row(const Step& step, const RlInstr& in, int64_t row, const float* out) {
  if (in.out_quant < 0) return;
  quantise(out, 0, in.width_out, quant_row(step, in.out_quant, in.width_out, row, row_count(step, in)), in.outlier);
}

}  // namespace
}  // namespace ridgeline
