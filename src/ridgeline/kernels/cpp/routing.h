// A routing row: [ids | weights | places], `chosen` floats each (ops/route.py). Rows sent are sorted by expert; a segment is
// one expert's.
#pragma once
#include "vec.h"

namespace ridgeline {
namespace {

RL_INLINE const float* routing_row(const Step& step, const RlInstr& in, int64_t token) {
  return floats(step, in.in2) + token * 3 * in.chosen;
}

// first[e]: where the rows of expert e begin; first[experts]: rows in all. Every thread counts for itself: a few thousand
// additions cost less than a barrier.
RL_INLINE void segments(const Step& step, const RlInstr& in, int32_t (&first)[RL_MAX_EXPERTS + 1]) {
  for (int e = 0; e <= in.experts; e++) first[e] = 0;
  for (int64_t token = 0; token < step.batch->tokens; token++)
    for (int j = 0; j < in.chosen; j++) first[static_cast<int>(routing_row(step, in, token)[j]) + 1]++;
  for (int e = 0; e < in.experts; e++) first[e + 1] += first[e];
}

}  // namespace
}  // namespace ridgeline
