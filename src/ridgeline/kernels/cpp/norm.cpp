// norm: x * rsqrt(mean(x^2) + eps) * gain, one row by one thread; head_norm: the same for each q and k head of a row.
// Idea: four vector accumulators in a fixed order, then a fixed tree; the quantised copy is written while the row is hot.
// gated_norm: each group of a row after in * silu(gate), the gate being the first part of a wider row of in2.
#include "quantise.h"

namespace ridgeline::RL_ISA {
namespace {

RL_INLINE void norm_row(const float* x, const float* gain, float* out, int64_t width, float eps) {
  F squares[4] = {};
  int64_t i = 0;
  for (; i + 4 * LANES <= width; i += 4 * LANES) {
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) {
      F v = load(x + i + j * LANES);
      squares[j] = fma(v, v, squares[j]);
    }
  }
  for (; i < width; i += LANES) {
    F v = width - i < LANES ? load_part(x + i, static_cast<int>(width - i)) : load(x + i);
    squares[0] = fma(v, v, squares[0]);
  }
  float mean = sum((squares[0] + squares[1]) + (squares[2] + squares[3])) / static_cast<float>(width);
  F factor = splat(1.0f / sqrtf(mean + eps));
  for (i = 0; i + LANES <= width; i += LANES) store(out + i, load(x + i) * factor * load(gain + i));
  if (i < width) {
    int n = static_cast<int>(width - i);
    store_part(out + i, load_part(x + i, n) * factor * load_part(gain + i, n), n);
  }
}

}  // namespace

void norm(Worker& worker, const Step& step, const RlInstr& in) {
  const int64_t width = in.width_out;
  const float* gain = static_cast<const float*>(in.weight[0].data);
  int64_t begin, end;
  share(row_count(step, in), worker, begin, end);
  for (int64_t row = begin; row < end; row++) {
    float* out = floats(step, in.out) + row * width;
    norm_row(floats(step, in.in) + row * width, gain, out, width, in.eps);
    finish_row(step, in, row, out);
  }
}

void head_norm(Worker& worker, const Step& step, const RlInstr& in) {
  const int64_t width = in.width_out, dim = in.head_dim, normed = (static_cast<int64_t>(in.heads) + in.kv_heads) * dim;
  const float* q_gain = static_cast<const float*>(in.weight[0].data);
  const float* k_gain = static_cast<const float*>(in.weight[1].data);
  int64_t begin, end;
  share(row_count(step, in), worker, begin, end);
  for (int64_t row = begin; row < end; row++) {
    const float* x = floats(step, in.in) + row * width;
    float* out = floats(step, in.out) + row * width;
    for (int h = 0; h < in.heads + in.kv_heads; h++)
      norm_row(x + h * dim, h < in.heads ? q_gain : k_gain, out + h * dim, dim, in.eps);
    if (out != x) memcpy(out + normed, x + normed, (width - normed) * 4);
    finish_row(step, in, row, out);
  }
}

void gated_norm(Worker& worker, const Step& step, const RlInstr& in) {
  const int64_t width = in.width_out, groups = in.kv_heads, part = width / groups;
  const int64_t wide = 2 * width + 2 * groups * in.states + in.heads;
  const float* gain = static_cast<const float*>(in.weight[0].data);
  int64_t begin, end;
  share(row_count(step, in), worker, begin, end);
  for (int64_t row = begin; row < end; row++) {
    const float* x = floats(step, in.in) + row * width;
    const float* gate = floats(step, in.in2) + row * wide;
    float* out = floats(step, in.out) + row * width;
    for (int64_t i = 0; i < width; i += LANES) {
      const int n = width - i < LANES ? static_cast<int>(width - i) : LANES;
      F z = n < LANES ? load_part(gate + i, n) : load(gate + i), y = n < LANES ? load_part(x + i, n) : load(x + i);
      y = y * (z / (splat(1.0f) + exp(splat(0.0f) - z)));
      n < LANES ? store_part(out + i, y, n) : store(out + i, y);
    }
    for (int64_t g = 0; g < groups; g++) norm_row(out + g * part, gain + g * part, out + g * part, part, in.eps);
    finish_row(step, in, row, out);
  }
}

}  // namespace ridgeline::RL_ISA
