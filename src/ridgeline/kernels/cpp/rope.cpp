// rope: rotate the q and k heads of a row by its position, in place, from tables [positions][rotary_dim / 2].
#include "quantise.h"

namespace ridgeline::RL_ISA {
namespace {

// Pairs (i, i + half). Products and sums are separate, as in the meaning, so that vector and tail agree.
RL_INLINE void turn_halves(float* head, const float* cos, const float* sin, int half) {
  int i = 0;
  for (; i + LANES <= half; i += LANES) {
    F a = load(head + i), b = load(head + half + i), c = load(cos + i), s = load(sin + i);
    store(head + i, a * c - b * s);
    store(head + half + i, b * c + a * s);
  }
  for (; i < half; i++) {
    float a = head[i], b = head[half + i];
    head[i] = a * cos[i] - b * sin[i];
    head[half + i] = b * cos[i] + a * sin[i];
  }
}

RL_INLINE void turn_neighbours(float* head, const float* cos, const float* sin, int half) {
  for (int i = 0; i < half; i++) {
    float a = head[2 * i], b = head[2 * i + 1];
    head[2 * i] = a * cos[i] - b * sin[i];
    head[2 * i + 1] = b * cos[i] + a * sin[i];
  }
}

}  // namespace

void rope(Worker& worker, const Step& step, const RlInstr& in) {
  const int heads = in.heads + in.kv_heads, half = in.rotary_dim / 2;
  const int64_t width = static_cast<int64_t>(in.heads + 2 * in.kv_heads) * in.head_dim;
  int64_t begin, end;
  share(step.batch->tokens, worker, begin, end);
  for (int64_t row = begin; row < end; row++) {
    float* x = floats(step, in.out) + row * width;
    if (in.in != in.out) memcpy(x, floats(step, in.in) + row * width, width * 4);
    const float* cos = in.rope_cos + static_cast<int64_t>(step.batch->positions[row]) * half;
    const float* sin = in.rope_sin + static_cast<int64_t>(step.batch->positions[row]) * half;
    for (int h = 0; h < heads; h++) {
      if (in.flags & RL_ROPE_INTERLEAVED)
        turn_neighbours(x + h * in.head_dim, cos, sin, half);
      else
        turn_halves(x + h * in.head_dim, cos, sin, half);
    }
  }
}

}  // namespace ridgeline::RL_ISA
