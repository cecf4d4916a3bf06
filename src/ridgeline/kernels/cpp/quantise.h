// The quantised copy of f32 rows that integer linears read: 15 bits per element as two int8 planes (value = scale *
// (128 * high + low)), per group of 32. Eight bits alone cost up to 9 % of the largest logit on SmolLM2, whose activations
// have outliers; two planes cost 0.1 % and, at one row, no time: the weights' bytes set the pace there.
// Per token and per group only, so that a row's bits never depend on its neighbours (promise 1).
// Layout: panels of PANEL rows (the last one shorter), which are what one block of linear.cpp reads. Each row is V = PLANES
// lanes there, high then low; per group of 32
//   int8 q[8][V rows][4], f32 scale[V rows], int32 -128 * sum of q [V rows]     80 bytes a row
// so that all its loads are one pointer and a small constant.
#pragma once
#include "vec.h"

namespace ridgeline {
namespace {

#if RL_LEVEL == 2
constexpr int PANEL = 6;
#else
constexpr int PANEL = 4;
#endif
constexpr int PLANES = 2;
constexpr int PANEL_GROUP = 40 * PLANES;  // bytes of a row in a group
constexpr float LEVELS = 127.0f * 128.0f;

struct QuantRow {
  uint8_t* panel;
  int64_t rows, row;  // of the panel; which of them
};

RL_INLINE uint8_t* panel_at(const Step& step, int64_t offset, int64_t width, int64_t first_row) {
  return step.arena + offset + first_row * (width / RL_GROUP * PANEL_GROUP);
}

RL_INLINE QuantRow quant_row(const Step& step, int64_t offset, int64_t width, int64_t row, int64_t rows) {
  const int64_t first = row / PANEL * PANEL;
  return {panel_at(step, offset, width, first), rows - first < PANEL ? rows - first : PANEL, row - first};
}

// Likewise, where panels begin anew at row `begin` and end with row `end` (the rows of one expert).
RL_INLINE QuantRow segment_row(const Step& step, int64_t offset, int64_t width, int64_t row, int64_t begin, int64_t end) {
  const int64_t first = begin + (row - begin) / PANEL * PANEL;
  return {panel_at(step, offset, width, first), end - first < PANEL ? end - first : PANEL, row - first};
}

// Columns [begin, end) of a row, both multiples of 32.
RL_INLINE void quantise(const float* x, int64_t begin, int64_t end, QuantRow to) {
  constexpr int N = RL_GROUP / LANES;
  for (int64_t at = begin; at < end; at += RL_GROUP) {
    F values[N];
    F peak = splat(0.0f);
#pragma GCC unroll 8
    for (int i = 0; i < N; i++) {
      values[i] = load(x + at + i * LANES);
      peak = max(abs(values[i]), peak);
    }
    const float most = largest(peak);
    const float inverse = most > 0.0f ? LEVELS / most : 0.0f;
    int8_t q[PLANES][RL_GROUP];
    I total[PLANES] = {splat_int(0), splat_int(0)};
#pragma GCC unroll 8
    for (int i = 0; i < N; i++) {
      I whole = round_int(values[i] * splat(inverse));
      const I high = (whole + splat_int(64)) >> 7, low = whole - (high << 7);  // -127..127 and -64..63
      store_int8(q[0] + i * LANES, high);
      store_int8(q[1] + i * LANES, low);
      total[0] += high;
      total[1] += low;
    }
    uint8_t* group = to.panel + at / RL_GROUP * (PANEL_GROUP * to.rows);
    for (int p = 0; p < PLANES; p++) {
      const int64_t lanes = PLANES * to.rows, lane = PLANES * to.row + p;
#pragma GCC unroll 8
      for (int j = 0; j < 8; j++) memcpy(group + (j * lanes + lane) * 4, q[p] + 4 * j, 4);
      const float scale = (p == 0 ? 128.0f : 1.0f) * (most / LEVELS);
      const int32_t offset = -128 * sum(total[p]);
      memcpy(group + (8 * lanes + lane) * 4, &scale, 4);
      memcpy(group + (9 * lanes + lane) * 4, &offset, 4);
    }
  }
}

// Row-wise operators end with this.
RL_INLINE void finish_row(const Step& step, const RlInstr& in, int64_t row, const float* out) {
  if (in.out_quant < 0) return;
  quantise(out, 0, in.width_out, quant_row(step, in.out_quant, in.width_out, row, row_count(step, in)));
}

}  // namespace
}  // namespace ridgeline
