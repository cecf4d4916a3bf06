// activation: function(gate) * up.
#include "gated.h"

namespace ridgeline::RL_ISA {

void activation(Worker& worker, const Step& step, const RlInstr& in) {
  const int64_t width = in.width_out;
  int64_t begin, end;
  share(row_count(step, in), worker, begin, end);
  for (int64_t row = begin; row < end; row++) {
    const float* gate = floats(step, in.in) + row * 2 * width;
    float* out = floats(step, in.out) + row * width;
    gate_row(gate, gate + width, out, width, in.activation);
    finish_row(step, in, row, out);
  }
}

}  // namespace ridgeline::RL_ISA
