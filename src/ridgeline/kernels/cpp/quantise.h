// The quantised copy of an f32 row that integer linears read: int8 per group of 32 with an f32 scale and the exact sum.
// Per token and per group only, so that a row's bits never depend on its neighbours (promise 1).
#pragma once
#include "vec.h"

namespace ridgeline {
namespace {

struct QuantRow {
  int8_t* q;
  float* scale;
  int32_t* sum;
};

RL_INLINE QuantRow quant_row(const Step& step, int64_t offset, int64_t width, int64_t row) {
  uint8_t* base = step.arena + offset + row * quant_stride(width);
  return {reinterpret_cast<int8_t*>(base), reinterpret_cast<float*>(base + width),
          reinterpret_cast<int32_t*>(base + width + width / RL_GROUP * 4)};
}

// Columns [begin, end) of a row, both multiples of 32.
RL_INLINE void quantise(const float* row, int64_t begin, int64_t end, QuantRow to) {
  constexpr int N = RL_GROUP / LANES;
  for (int64_t at = begin; at < end; at += RL_GROUP) {
    F x[N];
    F peak = splat(0.0f);
#pragma GCC unroll 8
    for (int i = 0; i < N; i++) {
      x[i] = load(row + at + i * LANES);
      peak = max(abs(x[i]), peak);
    }
    float most = largest(peak);
    float inverse = most > 0.0f ? 127.0f / most : 0.0f;
    I total = splat_int(0);
#pragma GCC unroll 8
    for (int i = 0; i < N; i++) {
      I q = round_int(x[i] * splat(inverse));
      store_int8(to.q + at + i * LANES, q);
      total += q;
    }
    to.scale[at / RL_GROUP] = most / 127.0f;
    to.sum[at / RL_GROUP] = sum(total);
  }
}

// Row-wise operators end with this.
RL_INLINE void finish_row(const Step& step, const RlInstr& in, int64_t row, const float* out) {
  if (in.out_quant >= 0) quantise(out, 0, in.width_out, quant_row(step, in.out_quant, in.width_out, row));
}

}  // namespace
}  // namespace ridgeline
