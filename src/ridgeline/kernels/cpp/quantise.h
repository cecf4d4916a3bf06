// The quantised copy of f32 rows that integer linears read: two int8 planes an element (value = scale * (high + low / 128))
// and one scale per group of 32. The low plane is kept where the outliers are: in groups whose peak exceeds `outlier` times
// the row's mean magnitude, since a group's error follows its peak. Elsewhere it is zero and nobody reads it.
// Per row only, so that a row's bits never depend on its neighbours (promise 1). Eight bits everywhere cost up to 4 % of the
// largest logit on SmolLM2 (docs/findings/cpu-linear.md).
// Layout: panels of PANEL rows (the last one shorter), which are what one block of linear.cpp reads. Per panel of R rows
//   for every group: int8 high[8][R][4], then six words [R] (below)     56 bytes a row
//   for every group: int8 low[8][R][4]                                  32 bytes a row
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

// The quantised copy of 32 elements as two planes, and their sums.
struct Rounded {
  int8_t high[RL_GROUP], low[RL_GROUP];
  int sum, half;
};

RL_INLINE void round_group(const F* values, float inverse, bool kept, Rounded& to) {
  constexpr int N = RL_GROUP / LANES;
  I total[2] = {splat_int(0), splat_int(0)};
#pragma GCC unroll 8
  for (int i = 0; i < N; i++) {
    const F scaled = values[i] * splat(inverse);
    I whole = kept ? round_int(scaled * splat(128.0f)) : round_int(scaled) << 7;
    const I high = (whole + splat_int(64)) >> 7;  // -127..127; what is left is -64..63
    store_int8(to.high + i * LANES, high);
    if (kept) store_int8(to.low + i * LANES, whole - (high << 7));
    total[i >= N / 2] += whole;
  }
  to.half = sum(total[0]);
  to.sum = to.half + sum(total[1]);
}

// Columns [begin, end) of a row, both multiples of 32.
RL_INLINE void quantise(const float* x, int64_t begin, int64_t end, QuantRow to, float outlier) {
  constexpr int N = RL_GROUP / LANES;
  F magnitudes = splat(0.0f);
  for (int64_t at = begin; at < end; at += LANES) magnitudes = magnitudes + abs(load(x + at));
  const float total = sum(magnitudes), limit = outlier * (total / static_cast<float>(end - begin));
  for (int64_t at = begin; at < end; at += RL_GROUP) {
    F values[N];
    F peak = splat(0.0f);
#pragma GCC unroll 8
    for (int i = 0; i < N; i++) {
      values[i] = load(x + at + i * LANES);
      peak = max(abs(values[i]), peak);
    }
    const float most = largest(peak);
    float scale = most / 127.0f;
    uint32_t bits_of_scale;
    memcpy(&bits_of_scale, &scale, 4);
    bits_of_scale &= ~3u;
    memcpy(&scale, &bits_of_scale, 4);
    const bool kept = most > limit;
    Rounded group = {};
    if (!(most < 1e32f && total < 1e38f))
      scale = __builtin_nanf("");
    else if (most < 1e-30f)
      scale = 0.0f;
    else
      round_group(values, 1.0f / scale, kept, group);
    const int64_t index = at / RL_GROUP;
    uint8_t *high = to.high + index * (HIGH_BYTES * to.rows), *low = to.low + index * (LOW_BYTES * to.rows);
#pragma GCC unroll 8
    for (int j = 0; j < 8; j++) {
      memcpy(high + (j * to.rows + to.row) * 4, group.high + 4 * j, 4);
      memcpy(low + (j * to.rows + to.row) * 4, group.low + 4 * j, 4);
    }
    uint8_t* words = high + 32 * to.rows + to.row * 4;
    const float shift = 12582912.0f * scale, weighted = scale * (static_cast<float>(group.sum) * 0x1p-7f);
    const int32_t start = START - group.sum, is_kept = kept;
    memcpy(words + SCALE * 4 * to.rows, &scale, 4);
    memcpy(words + SHIFT * 4 * to.rows, &shift, 4);
    memcpy(words + BEGIN * 4 * to.rows, &start, 4);
    memcpy(words + WEIGHTED * 4 * to.rows, &weighted, 4);
    memcpy(words + HALF * 4 * to.rows, &group.half, 4);
    memcpy(words + KEPT * 4 * to.rows, &is_kept, 4);
  }
}

// Row-wise operators end with this.
RL_INLINE void finish_row(const Step& step, const RlInstr& in, int64_t row, const float* out) {
  if (in.out_quant < 0) return;
  quantise(out, 0, in.width_out, quant_row(step, in.out_quant, in.width_out, row, row_count(step, in)), in.outlier);
}

}  // namespace
}  // namespace ridgeline
