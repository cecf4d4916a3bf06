// The quantised copy of f32 rows that integer linears read: int8 per group of 32 with an f32 scale and the exact sum.
// Per token and per group only, so that a row's bits never depend on its neighbours (promise 1).
// Layout: panels of PANEL rows (the last one shorter: R rows), which are what one block of linear.cpp reads; per group of 32
//   int8 q[8][R][4], f32 scale[R], int32 -128 * sum of q [R]     40 R bytes
// so that all its loads are one pointer and a small constant. Every row takes width + width / 4 bytes.
#pragma once
#include "vec.h"

namespace ridgeline {
namespace {

#if RL_LEVEL == 2
constexpr int PANEL = 12;
#else
constexpr int PANEL = 4;
#endif
constexpr int PANEL_GROUP = 40;  // bytes of a row in a group

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
    const float inverse = most > 0.0f ? 127.0f / most : 0.0f;
    int8_t q[RL_GROUP];
    I total = splat_int(0);
#pragma GCC unroll 8
    for (int i = 0; i < N; i++) {
      I whole = round_int(values[i] * splat(inverse));
      store_int8(q + i * LANES, whole);
      total += whole;
    }
    uint8_t* group = to.panel + at / RL_GROUP * (PANEL_GROUP * to.rows);
#pragma GCC unroll 8
    for (int j = 0; j < 8; j++) memcpy(group + (j * to.rows + to.row) * 4, q + 4 * j, 4);
    const float scale = most / 127.0f;
    const int32_t offset = -128 * sum(total);
    memcpy(group + (8 * to.rows + to.row) * 4, &scale, 4);
    memcpy(group + (9 * to.rows + to.row) * 4, &offset, 4);
  }
}

// Row-wise operators end with this.
RL_INLINE void finish_row(const Step& step, const RlInstr& in, int64_t row, const float* out) {
  if (in.out_quant < 0) return;
  quantise(out, 0, in.width_out, quant_row(step, in.out_quant, in.width_out, row, row_count(step, in)));
}

}  // namespace
}  // namespace ridgeline
