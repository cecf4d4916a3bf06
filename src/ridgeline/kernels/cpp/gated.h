// function(gate) * up, of activation.cpp and experts.cpp. Both functions are x * sigmoid(c(x)): silu has c = x, tanh-gelu
// c = 2 sqrt(2/pi) (x + 0.044715 x^3), since (1 + tanh u) / 2 = sigmoid(2u) (no cancellation near 0).
#pragma once
#include "quantise.h"

namespace ridgeline::RL_ISA {
namespace {

RL_INLINE F gated(F gate, F up, int function) {
  F c = gate;
  if (function == RL_GELU_TANH) c = splat(1.5957691216057308f) * gate * fma(gate * gate, splat(0.044715f), splat(1.0f));
  return gate / (splat(1.0f) + exp(splat(0.0f) - c)) * up;
}

RL_INLINE void gate_row(const float* gate, const float* up, float* out, int64_t width, int function) {
  int64_t i = 0;
  for (; i + LANES <= width; i += LANES) store(out + i, gated(load(gate + i), load(up + i), function));
  if (i < width) {
    const int n = static_cast<int>(width - i);
    store_part(out + i, gated(load_part(gate + i, n), load_part(up + i, n), function), n);
  }
}

}  // namespace
}  // namespace ridgeline::RL_ISA
