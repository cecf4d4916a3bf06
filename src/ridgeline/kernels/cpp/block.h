// What every block of linear.cpp reads: R rows (tokens) of activations, T units of a packed weight.
#pragma once
#include "quantise.h"

namespace ridgeline::RL_ISA {
namespace {

constexpr int64_t FETCH_BYTES = 6144;  // KERNELS.md §2: 4-8 KB ahead gives +10 %

// The activations a block reads.
struct Reads {
  const float* x;        // of the first row
  const uint8_t* panel;  // quantised: exactly these R rows (quantise.h)
  int64_t stride;        // floats between rows of x
  int64_t columns;
};

template <bool FETCH>
RL_INLINE void fetch(const uint8_t* line) {
  if constexpr (FETCH) __builtin_prefetch(line + FETCH_BYTES);
}

struct Part {
  const RlWeight* weight;
  int64_t tile_bytes, tiles, column;  // column: where this part starts in the output row
};

}  // namespace
}  // namespace ridgeline::RL_ISA
