// What linear.cpp lends to experts.cpp.
#pragma once
#include "kernels.h"

namespace ridgeline::RL_ISA {

struct Range {
  int64_t begin, end;
};

void linear_block(const Step& step, const RlInstr& in, const RlWeight& weight, int64_t column, Range tiles, Range rows);

}  // namespace ridgeline::RL_ISA
